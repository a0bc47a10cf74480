//! What stands for TensorRT in a kiln that was built without it: nothing can be made of these.

use std::convert::Infallible;
use std::io;
use std::path::Path;

use kiln_graph::Tensor;

use crate::run::{EngineRunError, Facts, LayerTime, RunOptions, Timing};
use crate::{
    BuildRequest, Built, EngineBuilder, EngineError, Kernels, Libraries, Progress, Version,
};

/// Builds no engines.
#[derive(Clone, Debug)]
pub struct RtxBuilder(Infallible);

impl RtxBuilder {
    /// # Errors
    /// [`EngineError::Absent`], always.
    pub fn new(_: &Libraries) -> Result<RtxBuilder, EngineError> {
        Err(EngineError::Absent)
    }

    pub fn version(&self) -> Version {
        match self.0 {}
    }
}

impl EngineBuilder for RtxBuilder {
    fn build(&self, _: &BuildRequest<'_>, _: &dyn Progress) -> Result<Built, EngineError> {
        match self.0 {}
    }
}

/// # Errors
/// Always.
pub fn serve(_: &Libraries) -> io::Result<()> {
    Err(io::Error::other(EngineError::Absent))
}

/// Runs no engines.
#[derive(Debug)]
pub struct Session(Infallible);

type Named = Vec<(String, Tensor)>;

impl Session {
    /// # Errors
    /// [`EngineError::Absent`], always.
    pub fn open(_: &[u8], _: Option<&Path>, _: &RunOptions) -> Result<Session, EngineRunError> {
        Err(EngineError::Absent.into())
    }

    pub fn fork(&self) -> Result<Session, EngineRunError> {
        match self.0 {}
    }

    pub fn describe(&self) -> String {
        match self.0 {}
    }

    pub fn run(&mut self, _: &[(String, Tensor)]) -> Result<Named, EngineRunError> {
        match self.0 {}
    }

    pub fn step(
        &mut self,
        _: &[(String, Tensor)],
        _: &[(String, Vec<usize>)],
    ) -> Result<Named, EngineRunError> {
        match self.0 {}
    }

    pub fn written_into(&self) -> Vec<&str> {
        match self.0 {}
    }

    pub fn begin(&mut self) -> Result<(), EngineRunError> {
        match self.0 {}
    }

    pub fn facts(&self) -> &Facts {
        match self.0 {}
    }

    pub fn memory(&self) -> Result<(usize, usize), EngineRunError> {
        match self.0 {}
    }

    pub fn uses_graph(&self) -> bool {
        match self.0 {}
    }

    pub fn bind(&mut self, _: &[(String, Tensor)]) -> Result<(), EngineRunError> {
        match self.0 {}
    }

    pub fn run_bound(&mut self) -> Result<Timing, EngineRunError> {
        match self.0 {}
    }

    pub fn start(&mut self) -> Result<(), EngineRunError> {
        match self.0 {}
    }

    pub fn is_done(&self) -> Result<bool, EngineRunError> {
        match self.0 {}
    }

    pub fn finish(&mut self) -> Result<f64, EngineRunError> {
        match self.0 {}
    }

    pub fn outputs(&self) -> Result<Named, EngineRunError> {
        match self.0 {}
    }

    pub fn inspected(&self) -> Result<Kernels, EngineRunError> {
        match self.0 {}
    }

    pub fn layers(
        &mut self,
        _: &[(String, Tensor)],
        _: usize,
    ) -> Result<Vec<LayerTime>, EngineRunError> {
        match self.0 {}
    }

    pub fn save_cache(&self) -> Result<(), EngineRunError> {
        match self.0 {}
    }
}
