//! What the command does when it is stopped, when a model shrinks under it, and when a file may not grow.

#![allow(unsafe_code)]

use std::fs;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level;

use crate::scratch;

/// A page of a mapped file was wanted that is not in the file any more.
static SHRUNK: AtomicBool = AtomicBool::new(false);

/// From now on, SIGINT, SIGTERM and SIGHUP remove what is half written and end the process with 128 + signal; so does
/// SIGBUS, with exit code 3 and the name of the file that got shorter; and a file over the limit of the process (`ulimit
/// -f`) is an error of its write instead of a signal.
///
/// `unfinished` is what a command says of the result that it then does not write.
pub(super) fn install(unfinished: &'static str) {
    // A process without them still works, and leaves half a folder behind when it is stopped.
    let Ok(mut signals) = Signals::new([SIGINT, SIGTERM, SIGHUP]) else {
        return;
    };
    let watching = thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            if let Some(signal) = signals.forever().next() {
                stop(signal, unfinished);
            }
        });
    if watching.is_err() {
        return;
    }
    // SAFETY: the handler calls async-signal-safe functions only, and both calls set what the whole process wants.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_bus as *const () as usize;
        action.sa_flags = libc::SA_ONSTACK;
        libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut());
    }
}

fn stop(signal: i32, unfinished: &str) -> ! {
    let _until_the_end = scratch::abandon();
    let (code, what) = match SHRUNK.load(Ordering::SeqCst) {
        true => (3, shrunk()),
        false => (128 + signal, "interrupted".into()),
    };
    // Neither a closed stderr nor a full one is a reason to stay.
    let _ = writeln!(io::stderr(), "\nkiln: {what}{unfinished}");
    // Without the destructors of libraries whose threads still run.
    low_level::exit(code)
}

/// Wakes the thread that cleans up, and never returns: the instruction at fault would run again.
extern "C" fn on_bus(_: i32) {
    SHRUNK.store(true, Ordering::SeqCst);
    // SAFETY: both are async-signal-safe.
    unsafe {
        libc::kill(libc::getpid(), libc::SIGTERM);
        loop {
            libc::pause();
        }
    }
}

/// Names the mapped files that are shorter than what is mapped of them.
fn shrunk() -> String {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let mut names: Vec<&str> = maps.lines().filter_map(too_short).collect();
    names.dedup();
    match names.is_empty() {
        true => "a file got shorter while it was read".into(),
        false => format!(
            "{} got shorter while it was read: another program writes it",
            names.join(", ")
        ),
    }
}

/// The file of a line `START-END MODE OFFSET DEVICE INODE PATH`, if it ends before the last page of the range.
fn too_short(line: &str) -> Option<&str> {
    let (range, rest) = line.split_once(' ')?;
    let path = &rest[rest.find('/')?..];
    let offset = rest.split_whitespace().nth(1)?;
    let (start, end) = range.split_once('-')?;
    let hex = |s| u64::from_str_radix(s, 16).ok();
    let wanted = hex(offset)? + (hex(end)? - hex(start)?);
    let there = fs::metadata(path).ok()?.len();
    (there.next_multiple_of(4096) < wanted).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_got_shorter_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(8192).unwrap();
        let path = file.path().to_str().unwrap().to_string();
        let line = format!("7f0000000000-7f0000002000 r--p 00000000 fe:00 12 {path}");
        assert_eq!(too_short(&line), None);
        file.as_file().set_len(4097).unwrap();
        assert_eq!(too_short(&line), None);
        file.as_file().set_len(4096).unwrap();
        assert_eq!(too_short(&line), Some(path.as_str()));
        assert_eq!(too_short("7f00-7f01 rw-p 00000000 00:00 0 [heap]"), None);
    }
}
