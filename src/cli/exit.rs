//! Exit codes, which the help of `kiln` lists.

use super::failure::Failure;
use crate::attention::AttentionError;
use crate::bench::BenchError;
use crate::compile::CompileError;
use crate::engine::run::EngineRunError;
use crate::fault::Fault;
use crate::generate::GenerateError;
use crate::{bisect, check, diff, pipeline};

/// The exit code for what is at fault.
pub fn code(fault: Fault) -> u8 {
    match fault {
        Fault::Result => 1,
        Fault::Request => 2,
        Fault::Model => 3,
        Fault::Target => 4,
        Fault::Machine => 5,
        Fault::Defect => 7,
        Fault::Search => 8,
        Fault::Timing => 9,
    }
}

macro_rules! failures {
    ($($error:ty),*) => {$(
        impl From<$error> for Failure {
            fn from(e: $error) -> Failure {
                Failure {
                    code: code(e.fault()),
                    error: e.into(),
                }
            }
        }
    )*};
}

failures!(
    AttentionError,
    BenchError,
    CompileError,
    GenerateError,
    bisect::Error,
    check::Error,
    diff::Error,
    pipeline::Error
);

impl From<EngineRunError> for Failure {
    fn from(e: EngineRunError) -> Failure {
        BenchError::from(e).into()
    }
}
