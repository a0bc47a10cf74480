//! A file that TensorRT writes an engine into, while it serializes.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_void};
use std::fs::File;
use std::io::{self, Write};
use std::pin::Pin;

use trtx_sys::nvinfer1::IStreamWriter;

/// An `IStreamWriter`. The bindings can call one and make none, so it is laid out here as NvInferRuntime.h declares it: the table of
/// virtual functions has those of `IVersionedInterface`, the two entries of its destructor, then `write`.
#[repr(C)]
pub(super) struct Stream {
    table: *const Table,
    file: File,
    failed: Option<io::Error>,
}

#[repr(C)]
struct Table {
    language: unsafe extern "C" fn(*const c_void) -> i32,
    about: unsafe extern "C" fn(*const c_void) -> About,
    destroy: unsafe extern "C" fn(*mut c_void),
    delete: unsafe extern "C" fn(*mut c_void),
    write: unsafe extern "C" fn(*mut Stream, *const c_void, i64) -> i64,
}

/// `InterfaceInfo`: the name and version of the interface.
#[repr(C)]
struct About {
    kind: *const c_char,
    major: i32,
    minor: i32,
}

/// What the compiler of C++ puts in front of the functions: where the object begins, and its type at run time, which is unknown.
#[repr(C)]
struct Whole {
    offset: isize,
    kind: usize,
    table: Table,
}

static TABLE: Whole = Whole {
    offset: 0,
    kind: 0,
    table: Table {
        language,
        about,
        destroy: nothing,
        delete: nothing,
        write,
    },
};

const NAME: &CStr = c"IStreamWriter";

impl Stream {
    pub(super) fn new(file: File) -> Stream {
        Stream {
            table: &raw const TABLE.table,
            file,
            failed: None,
        }
    }

    /// The object as TensorRT takes it, for as long as this one is borrowed.
    pub(super) fn as_pin(&mut self) -> Pin<&mut IStreamWriter> {
        // SAFETY: laid out as an `IStreamWriter` is, behind a table that lives as long as the program. It stays where it is while it is
        // borrowed, and TensorRT destroys no writer of an application.
        unsafe { Pin::new_unchecked(&mut *(&raw mut *self).cast::<IStreamWriter>()) }
    }

    /// Ends the file.
    ///
    /// # Errors
    /// The first that the disk gave.
    pub(super) fn end(self) -> io::Result<()> {
        self.failed.map_or(Ok(()), Err)
    }
}

/// `APILanguage::kCPP`.
unsafe extern "C" fn language(_: *const c_void) -> i32 {
    0
}

unsafe extern "C" fn about(_: *const c_void) -> About {
    About {
        kind: NAME.as_ptr(),
        major: 1,
        minor: 0,
    }
}

unsafe extern "C" fn nothing(_: *mut c_void) {}

/// The number of bytes that were written; fewer stop TensorRT.
unsafe extern "C" fn write(stream: *mut Stream, data: *const c_void, len: i64) -> i64 {
    // SAFETY: TensorRT hands back the object that it was given, and as many bytes as it says.
    let (stream, data) = unsafe {
        let Some(stream) = stream.as_mut() else {
            return -1;
        };
        match usize::try_from(len) {
            Ok(len) if len > 0 && !data.is_null() => {
                (stream, std::slice::from_raw_parts(data.cast::<u8>(), len))
            }
            _ => return 0,
        }
    };
    match stream.file.write_all(data) {
        Ok(()) => len,
        Err(e) => {
            stream.failed.get_or_insert(e);
            -1
        }
    }
}
