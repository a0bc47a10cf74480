//! One's own judge: the arguments of every command that has one.

use std::path::PathBuf;

use super::help;
use crate::judge::Asked;
use crate::recipe;

#[derive(clap::Args, Debug)]
pub(super) struct JudgeArgs {
    /// Fail unless this command, run by sh, ends with 0.
    ///
    /// Its last argument is a folder with inputs and outputs of original and result as .npz; it may print a JSON object with a
    /// number, "value", and its name, "metric".
    #[arg(long, value_name = "COMMAND", help_heading = help::PROOF)]
    judge: Option<String>,
    /// Inputs for the judge: .npz, .npy, a folder of them, or lines of text.
    ///
    /// Text needs --judge-tokenizer. [default: the inputs of the comparison, most of which are made up]
    #[arg(long, value_name = "DATA", requires = "judge", help_heading = help::DATA)]
    judge_data: Option<PathBuf>,
    /// The model's tokenizer.json, for --judge-data with text.
    #[arg(long, value_name = "FILE", requires = "judge_data", help_heading = help::DATA)]
    judge_tokenizer: Option<PathBuf>,
}

impl JudgeArgs {
    pub(super) fn asked(self) -> Option<Asked> {
        Some(Asked {
            command: self.judge?,
            data: self.judge_data,
            tokenizer: self.judge_tokenizer,
        })
    }

    pub(super) fn recipe(self) -> recipe::Judge {
        recipe::Judge {
            command: self.judge,
            data: self.judge_data,
            tokenizer: self.judge_tokenizer,
        }
    }
}
