//! Why a verb ends with another exit code than 0.

use std::io;

/// Nothing differs, and not every output could have shown that it does.
pub(super) const NOT_PROVED: u8 = 6;

/// A failure with its exit code.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) code: u8,
    pub(super) error: anyhow::Error,
}

impl Failure {
    pub(super) fn usage(error: impl Into<anyhow::Error>) -> Failure {
        Failure {
            code: 2,
            error: error.into(),
        }
    }

    pub(super) fn model(error: impl Into<anyhow::Error>) -> Failure {
        Failure {
            code: 3,
            error: error.into(),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(e: io::Error) -> Failure {
        Failure::usage(e)
    }
}

impl From<crate::report::WriteError> for Failure {
    fn from(e: crate::report::WriteError) -> Failure {
        Failure::usage(e)
    }
}

/// The chain of causes on one line, without repeating what a message already quotes of its cause.
pub(super) fn describe(error: &anyhow::Error) -> String {
    let mut out = error.to_string();
    for cause in error.chain().skip(1) {
        let text = cause.to_string();
        if !out.contains(&text) {
            out.push_str(": ");
            out.push_str(&text);
        }
    }
    crate::bundle::public(&out).into_owned()
}

pub(super) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.chain().filter_map(|e| e.downcast_ref::<io::Error>());
    io.into_iter()
        .any(|e| e.kind() == io::ErrorKind::BrokenPipe)
}
