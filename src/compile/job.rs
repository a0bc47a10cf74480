//! What the stages of one compilation share.

use kiln_graph::Model;

use super::{CompileError, build};
use crate::bundle::Partial;
use crate::engine::{ComputeCapability, EngineBuilder};
use crate::manifest::EngineFacts;
use crate::options::Options;
use crate::pipeline::Rewritten;
use crate::pipeline::prepared::Prepared;
use crate::talk::Talk;
use crate::targets::Targets;

/// One compilation.
#[derive(Clone, Copy)]
pub(super) struct Job<'a> {
    pub options: &'a Options,
    pub prepared: &'a Prepared,
    pub partial: &'a Partial,
    /// `None` where no engine is built.
    pub builder: Option<&'a dyn EngineBuilder>,
    /// Why the proof runs piece by piece, if it does.
    pub in_pieces: Option<&'a str>,
}

impl Job<'_> {
    /// What builds the engine, and for which GPUs.
    fn engine_for(&self) -> Option<(&[ComputeCapability], &dyn EngineBuilder)> {
        match (&self.prepared.targets, self.builder) {
            (Targets::Engines(capabilities), Some(builder)) => Some((capabilities, builder)),
            _ => None,
        }
    }

    /// Whether the targets have kernels for the model's products.
    ///
    /// # Errors
    /// When they have none, with the nodes.
    pub fn has_kernels(&self, rewritten: &Rewritten) -> Result<(), CompileError> {
        match self.engine_for() {
            Some((capabilities, _)) => build::has_kernels(self.options, capabilities, rewritten),
            None => Ok(()),
        }
    }

    /// The nodes, by their labels, that may not keep FP32 on the targets.
    pub fn bound(&self) -> Vec<String> {
        let capabilities = self.engine_for().map(|(capabilities, _)| capabilities);
        build::bound(capabilities, &self.prepared.fused.model)
    }

    /// The engine of a model; `None` where none is built.
    ///
    /// # Errors
    /// When TensorRT builds none.
    pub fn engine(
        &self,
        model: &Model,
        talk: &dyn Talk,
    ) -> Result<Option<EngineFacts>, CompileError> {
        let Some((capabilities, builder)) = self.engine_for() else {
            return Ok(None);
        };
        let (options, shapes) = (self.options, &self.prepared.shapes);
        let built = build::build(
            options,
            builder,
            capabilities,
            model,
            shapes,
            self.partial,
            talk,
        );
        built
            .map(Some)
            .map_err(|e| e.beside(&self.prepared.selecting))
    }
}
