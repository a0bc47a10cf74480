mod capability;
mod error;
mod ffi;
mod log;
mod progress;
use std::path::PathBuf;
pub use capability::*; pub use error::*; pub use log::{LogLine, Severity}; pub use progress::*;
#[derive(Clone, Debug)]
pub struct Libraries { pub core: PathBuf, pub parser: PathBuf }

pub fn experiment(libs: &Libraries, onnx: &[u8], dims: &[(String, [Vec<i64>; 3])], caps: &[ComputeCapability], detailed: bool, p: &dyn Progress) -> Result<(), String> {
    let api = ffi::Api::load(libs).map_err(|e| e.to_string())?;
    let log = log::Log::new().unwrap();
    let m = progress::Monitor::new(p).unwrap();
    let mut s = ffi::Session::new(&api, &log, &m).map_err(|e| e.to_string())?;
    let t = std::time::Instant::now();
    let r = s.parse(onnx, None);
    println!("parse {:?} {:?}", r.is_ok(), t.elapsed());
    if let Err(f) = &r { for f in f { println!("  FAIL {f:?}"); } }
    if r.is_ok() {
        for i in s.inputs().iter().chain(&s.outputs()) { println!("  io {} {:?} {:?} shape={}", i.name, i.dtype, i.shape, i.is_shape); }
        s.set_capabilities(caps).map_err(|e| e.to_string())?;
        if detailed { s.set_detailed(); }
        if !dims.is_empty() {
        let v: Vec<_> = dims.iter().map(|(n, d)| (std::ffi::CString::new(n.as_str()).unwrap(), [&d[0][..], &d[1][..], &d[2][..]])).collect();
        println!("profile {:?}", s.add_profile(&v)); }
        let t = std::time::Instant::now();
        let b = s.build();
        println!("build {:?} {:?} layers {}", b.as_ref().map(|b| b.bytes().len()), t.elapsed(), s.layer_count());
        if let Some(b) = b { drop(s); std::fs::write("/tmp/work/engine/last.plan", b.bytes()).unwrap(); }
    }
    for l in log.lines() { println!("  LOG {:?} x{} {}", l.severity, l.count, l.text); }
    Ok(())
}
