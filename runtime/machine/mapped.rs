//! Files of our own, mapped.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::path::Path;

use memmap2::Mmap;

/// Maps a file that this process or its child has written, in a folder of a name that nobody else knows. Models of users are
/// mapped where they are read, in `kiln-graph`.
///
/// # Errors
/// When the file cannot be opened or mapped.
pub fn own(path: &Path) -> io::Result<Mmap> {
    let file = File::open(path)?;
    // SAFETY: nobody writes to the file any more, as above.
    unsafe { Mmap::map(&file) }
}
