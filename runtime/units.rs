//! Numbers in the units that people read.

/// `33.4 M`
pub fn count(n: usize) -> String {
    scaled(n as f64, 1000.0, &["", " K", " M", " G", " T"])
}

/// `133.5 MB`, in powers of 1000.
pub fn bytes(n: usize) -> String {
    scaled(n as f64, 1000.0, &[" B", " kB", " MB", " GB", " TB"])
}

fn scaled(mut n: f64, base: f64, units: &[&str]) -> String {
    let mut k = 0;
    while n >= base && k + 1 < units.len() {
        n /= base;
        k += 1;
    }
    match k {
        0 => format!("{n}{}", units[0]),
        _ => format!("{n:.1}{}", units[k]),
    }
}
