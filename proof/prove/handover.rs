//! Hands inputs and both sides' outputs to the user's own judge.

use std::fs;
use std::path::Path;

use kiln_graph::Tensor;
use serde::Serialize;

use super::{Error, Proof, Reference, ports};
use crate::calibrate::{Source, SourceOptions};
use crate::judge::{self, Asked, Judgement};
use crate::made;
use crate::parity::{Case, ParityError, Side, npz};
use kiln_runtime::Session;
use kiln_runtime::scratch::Temporary;
use kiln_runtime::talk::Talk;

/// A case in the list that the judge is given.
#[derive(Serialize)]
struct Listed {
    folder: String,
    name: String,
    /// Its inputs were made up.
    made: bool,
}

impl Proof {
    /// What the user's judge says of the result.
    ///
    /// # Errors
    /// When data cannot be read, a model does not run, or files cannot be written. What the judge says is no error.
    pub fn ask(&mut self, asked: &Asked, talk: &dyn Talk) -> Result<Judgement, Error> {
        self.reference.ask(&self.path, asked, talk)
    }
}

impl Reference {
    /// What the user's judge says of the model in a file.
    ///
    /// # Errors
    /// As [`Proof::ask`], and when the model does not load.
    pub fn ask(
        &mut self,
        candidate: &Path,
        asked: &Asked,
        talk: &dyn Talk,
    ) -> Result<Judgement, Error> {
        let mut session = self.candidate(candidate)?;
        self.ask_of(&mut session, asked, talk)
    }

    fn ask_of(
        &mut self,
        candidate: &mut Session,
        asked: &Asked,
        talk: &dyn Talk,
    ) -> Result<Judgement, Error> {
        let folder =
            Temporary::new().map_err(|e| failed(Path::new("the folder for temporary files"), e))?;
        let mut listed = Vec::new();
        match &asked.data {
            None => {
                for case in self.cases.clone() {
                    self.hand_over(candidate, &case, folder.path(), &mut listed)?;
                }
            }
            Some(data) => {
                let reading = SourceOptions {
                    tokenizer: asked.tokenizer.clone(),
                    fixed: self.fixed.values.clone(),
                    ..SourceOptions::default()
                };
                let graph = &self.original.model.graph;
                let source = Source::open(graph, data, &reading)?;
                for batch in source.batches() {
                    let batch = batch?;
                    let case = Case {
                        name: batch.name,
                        inputs: batch.inputs,
                    };
                    self.hand_over(candidate, &case, folder.path(), &mut listed)?;
                }
            }
        }
        let list = folder.path().join(judge::CASES);
        let text = serde_json::to_vec_pretty(&listed).map_err(Error::List)?;
        fs::write(&list, text).map_err(|e| failed(&list, e))?;
        let (judgement, said) = judge::run(&asked.command, folder.path(), listed.len());
        if !said.trim().is_empty() {
            talk.note(said.trim_end());
        }
        Ok(judgement)
    }

    /// Runs both sides at a case and writes its folder.
    fn hand_over(
        &mut self,
        candidate: &mut Session,
        case: &Case,
        folder: &Path,
        listed: &mut Vec<Listed>,
    ) -> Result<(), Error> {
        let given = ports::given(&case.inputs, &self.asked);
        let with = |inputs| Case {
            name: case.name.clone(),
            inputs,
        };
        let (ours, theirs) = (with(given.reference), with(given.candidate));
        let failed_on = |side| {
            let case = case.name.clone();
            move |source| ParityError::Run { case, side, source }
        };
        let expected = self.original.run(&ours.inputs);
        let expected = expected.map_err(failed_on(Side::Reference))?;
        let theirs = made::fed(candidate.inputs(), &self.fixed, &theirs.inputs);
        self.original.tally.result();
        let mut found = (candidate.run(&theirs)).map_err(failed_on(Side::Candidate))?;
        if self.half_io {
            ports::alike(&mut found, &expected);
        }
        let name = format!("{:05}", listed.len());
        let place = folder.join(&name);
        fs::create_dir(&place).map_err(|e| failed(&place, e))?;
        let write = |file: &str, arrays: &[(String, Tensor)]| npz::write(&place.join(file), arrays);
        write("inputs.npz", &ours.inputs)?;
        write("original.npz", &expected)?;
        write("result.npz", &found)?;
        listed.push(Listed {
            folder: name,
            name: case.name.clone(),
            made: self.made.contains(&case.name),
        });
        Ok(())
    }
}

fn failed(path: &Path, source: std::io::Error) -> Error {
    Error::Judge {
        path: path.to_path_buf(),
        source,
    }
}
