//! What the parser holds about an error, which the bindings do not reach.

#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_void};

use super::owned::text;
use crate::explain::RawFailure;

/// An `IParserError`. The bindings know only its description, so the rest goes through its table of virtual functions,
/// in the order in which NvOnnxParser.h declares them.
#[derive(Clone, Copy)]
pub(super) struct ParserError(pub(super) *mut c_void);

type GetText = unsafe extern "C" fn(*mut c_void) -> *const c_char;
type GetNumber = unsafe extern "C" fn(*mut c_void) -> c_int;

#[repr(C)]
struct ParserErrorTable {
    code: GetNumber,
    desc: GetText,
    file: GetText,
    line: GetNumber,
    func: GetText,
    node: GetNumber,
    node_name: GetText,
    node_operator: GetText,
}

impl ParserError {
    /// # Safety
    /// The pointer must be a living `IParserError`.
    pub(super) unsafe fn read(self) -> RawFailure {
        unsafe {
            let table = &**self.0.cast::<*const ParserErrorTable>();
            let reason = text(trtx_sys::parser_error_desc(self.0)).unwrap_or_default();
            let filled = |s: Option<String>| s.filter(|s| !s.is_empty());
            RawFailure {
                index: usize::try_from((table.node)(self.0)).ok(),
                node: filled(text((table.node_name)(self.0))),
                op: filled(text((table.node_operator)(self.0))),
                text: reason,
            }
        }
    }
}
