//! What single nodes of a model do: where they run, and how long.

use std::path::Path;

use schemars::JsonSchema;
use serde::Serialize;

use super::BenchError;
use super::loaded::{Loaded, Request, inputs, session_options};
use super::profile::Profile;
use crate::runtime::{self, Placement, Runtime, Session, SessionOptions};
use crate::scratch::Temporary;
use crate::shapes::{self, Point};
use crate::talk::Talk;

/// Where the nodes of one model ran.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Placed {
    pub model: String,
    #[serde(flatten)]
    pub placement: Placement,
}

/// What ONNX Runtime's profile of a GPU is.
const LAUNCHES: &str = "the profile has the time that the host takes to launch kernels, not that in which the GPU runs them";

/// One model after another in sessions that are watched, at one point.
pub(super) struct Nodes<'a> {
    pub request: &'a Request,
    pub runtime: &'static Runtime,
    pub options: &'a SessionOptions,
    pub loaded: &'a [Loaded],
    pub talk: &'a dyn Talk,
}

impl Nodes<'_> {
    /// Where the nodes of each model run; what falls back is told.
    pub fn placements(&self, point: &Point) -> Result<Vec<Placed>, BenchError> {
        let placed = |l: &Loaded| {
            self.talk.stage(&format!("placement of {}", l.name));
            let placement = self.placement(l, point)?;
            if !placement.pass() {
                let told = format!("{}: {}", l.name, placement.describe());
                self.talk.warn(&told);
            }
            Ok(Placed {
                model: l.name.clone(),
                placement,
            })
        };
        self.loaded.iter().map(placed).collect()
    }

    /// Where the nodes of a model run, from one run.
    fn placement(&self, l: &Loaded, point: &Point) -> Result<Placement, BenchError> {
        let options = SessionOptions {
            watched: true,
            ..self.options_of(l)
        };
        let mut session = Session::from_path(self.runtime, &l.path, &options)?;
        session.excuse(shapes::derived(&l.model));
        let (inputs, _) = inputs(self.request, &l.model, &session, point)?;
        session.bind(&inputs)?.run_discarding()?;
        let placement = session.placement()?;
        placement.ok_or_else(|| {
            BenchError::Runtime(runtime::Error::Run {
                model: l.name.clone(),
                reason: "ONNX Runtime does not say where its nodes ran".into(),
            })
        })
    }

    /// The profile of each model.
    pub fn profiles(&self, point: &Point) -> Result<Vec<Profile>, BenchError> {
        if !self.options.device.is_cpu() {
            self.talk.warn(LAUNCHES);
        }
        let profile = |l: &Loaded| {
            self.talk.stage(&format!("profile {}", l.name));
            self.profile(l, point)
        };
        self.loaded.iter().map(profile).collect()
    }

    fn profile(&self, l: &Loaded, point: &Point) -> Result<Profile, BenchError> {
        let folder = Temporary::new().map_err(|source| BenchError::Io {
            path: std::env::temp_dir(),
            why: "a folder for the profile cannot be made",
            source,
        })?;
        let file = folder.path().join("profile");
        let mut session = Session::profiled(self.runtime, &l.path, &self.options_of(l), &file)?;
        let (inputs, _) = inputs(self.request, &l.model, &session, point)?;
        for _ in 0..self.request.profile {
            session.bind(&inputs)?.run_discarding()?;
        }
        let written = session.end_profile()?;
        let read = Profile::read(&l.name, Path::new(&written), self.request.profile);
        Ok(read?)
    }

    /// A replayed graph has no nodes that could be watched.
    fn options_of(&self, l: &Loaded) -> SessionOptions {
        let mut options = session_options(self.options, &l.model);
        options.gpu.graph = false;
        options
    }
}
