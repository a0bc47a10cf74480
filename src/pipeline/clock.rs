//! Stages, told as they begin, and their times.

use std::time::Instant;

use crate::manifest::Stage;
use crate::talk::Talk;

/// Names each stage to the user and keeps its time.
pub(crate) struct Clock<'a> {
    pub stages: Vec<Stage>,
    pub talk: &'a dyn Talk,
}

impl<'a> Clock<'a> {
    pub fn new(talk: &'a dyn Talk) -> Clock<'a> {
        Clock {
            stages: Vec::new(),
            talk,
        }
    }

    pub fn time<T, E>(&mut self, name: &str, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        self.talk.stage(name);
        let start = Instant::now();
        let done = work()?;
        self.stages.push(Stage {
            name: name.into(),
            seconds: start.elapsed().as_secs_f64(),
        });
        Ok(done)
    }
}
