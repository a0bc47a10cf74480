//! Tests that lack a runtime are skipped. Where all are to run, none may be.

use crate::common;

use kiln::{engine, runtime};

/// `make test` sets it, as it has installed what the tests need.
const COMPLETE: &str = "KILN_TESTS_COMPLETE";

#[test]
fn nothing_is_skipped_where_all_is_installed() {
    if std::env::var_os(COMPLETE).is_none() {
        println!("skipped: {COMPLETE} is not set, so tests may lack runtimes");
        return;
    }
    runtime::locate(None).unwrap();
    engine::locate(None).unwrap();
    assert!(common::browser::Browser::start().is_some());
}
