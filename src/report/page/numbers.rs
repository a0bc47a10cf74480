//! Numbers as people read them.

/// Whole numbers of five digits and more in groups of three: `1 572 864`, with narrow spaces.
pub(super) fn grouped(cell: &str) -> String {
    if cell.len() < 5 || !cell.bytes().all(|b| b.is_ascii_digit()) {
        return cell.to_string();
    }
    let digits = cell.chars().enumerate();
    digits.fold(String::new(), |mut out, (k, digit)| {
        if k > 0 && (cell.len() - k).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(digit);
        out
    })
}

/// Three digits, or all of a whole number.
pub(super) fn digits(v: f64) -> String {
    match v.abs() {
        0.0 => "0".into(),
        a if a >= 1e6 => format!("{v:.1e}"),
        a if a >= 100.0 || a >= 1.0 && a.fract() == 0.0 => grouped(&format!("{v:.0}")),
        a if a >= 10.0 => format!("{v:.1}"),
        a if a >= 1.0 => format!("{v:.2}"),
        a if a >= 0.01 => {
            let text = format!("{v:.3}");
            text.trim_end_matches('0').into()
        }
        _ => format!("{v:.0e}"),
    }
}
