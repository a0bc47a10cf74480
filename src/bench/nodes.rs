//! What single nodes of a model do: where they run, and how long.

use std::path::Path;

use kiln_graph::Model;
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

/// Where the nodes of each model run at a point; what falls back is told.
pub(super) fn placements(
    request: &Request,
    runtime: &'static Runtime,
    options: &SessionOptions,
    loaded: &[Loaded],
    point: &Point,
    talk: &dyn Talk,
) -> Result<Vec<Placed>, BenchError> {
    let mut placements = Vec::new();
    for l in loaded {
        talk.stage(&format!("placement of {}", l.name));
        let placement = placement(request, runtime, options, l, point)?;
        if !placement.pass() {
            talk.warn(&format!("{}: {}", l.name, placement.describe()));
        }
        placements.push(Placed {
            model: l.name.clone(),
            placement,
        });
    }
    Ok(placements)
}

/// Where the nodes of a model run at a point, from one run of a session of its own.
fn placement(
    request: &Request,
    runtime: &'static Runtime,
    options: &SessionOptions,
    l: &Loaded,
    point: &Point,
) -> Result<Placement, BenchError> {
    let options = SessionOptions {
        watched: true,
        ..nodewise(options, &l.model)
    };
    let mut session = Session::from_path(runtime, &l.path, &options)?;
    session.excuse(shapes::derived(&l.model));
    let (inputs, _) = inputs(request, &l.model, &session, point)?;
    session.bind(&inputs)?.run_discarding()?;
    let placement = session.placement()?;
    placement.ok_or_else(|| {
        BenchError::Runtime(runtime::Error::Run {
            model: l.name.clone(),
            reason: "ONNX Runtime does not say where its nodes ran".into(),
        })
    })
}

/// The profile of each model at a point.
pub(super) fn profiles(
    request: &Request,
    runtime: &'static Runtime,
    options: &SessionOptions,
    loaded: &[Loaded],
    point: &Point,
    talk: &dyn Talk,
) -> Result<Vec<Profile>, BenchError> {
    if !options.device.is_cpu() {
        talk.warn(LAUNCHES);
    }
    let profile = |l: &Loaded| {
        talk.stage(&format!("profile {}", l.name));
        profile(request, runtime, options, l, point)
    };
    loaded.iter().map(profile).collect()
}

fn profile(
    request: &Request,
    runtime: &'static Runtime,
    options: &SessionOptions,
    l: &Loaded,
    point: &Point,
) -> Result<Profile, BenchError> {
    let folder = Temporary::new().map_err(|source| BenchError::Io {
        path: std::env::temp_dir(),
        why: "a folder for the profile cannot be made",
        source,
    })?;
    let options = nodewise(options, &l.model);
    let file = folder.path().join("profile");
    let mut session = Session::profiled(runtime, &l.path, &options, &file)?;
    let (inputs, _) = inputs(request, &l.model, &session, point)?;
    for _ in 0..request.profile {
        session.bind(&inputs)?.run_discarding()?;
    }
    let written = session.end_profile()?;
    let read = Profile::read(&l.name, Path::new(&written), request.profile);
    Ok(read?)
}

/// A replayed graph has no nodes that could be watched.
fn nodewise(options: &SessionOptions, model: &Model) -> SessionOptions {
    let mut options = session_options(options, model);
    options.gpu.graph = false;
    options
}
