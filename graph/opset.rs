use crate::*;
#[derive(Debug,thiserror::Error)] #[error("x")] pub struct OpsetError; #[derive(Debug)] pub struct Converted{pub nodes:usize}
pub fn convert(_:&mut Model,_:i64)->Result<Converted,OpsetError>{Ok(Converted{nodes:0})}
