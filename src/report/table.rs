//! Tables for the terminal.

/// Rows under a header, columns aligned: text to the left, numbers to the right.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |s: &str| s.chars().count();
    let columns = header.len();
    let mut widths: Vec<usize> = header.iter().map(|h| width(h)).collect();
    for row in rows {
        for (k, cell) in row.iter().enumerate().take(columns) {
            widths[k] = widths[k].max(width(cell));
        }
    }
    let numeric = |k: usize| {
        let mut cells = rows
            .iter()
            .filter_map(|r| r.get(k))
            .filter(|c| !c.is_empty());
        cells.all(|c| c.starts_with(|ch: char| ch.is_ascii_digit() || ch == '-' || ch == '+'))
    };
    let mut out = String::new();
    let mut line = |cells: &[String]| {
        let mut text = String::from(" ");
        for (k, cell) in cells.iter().enumerate().take(columns) {
            let pad = " ".repeat(widths[k] - width(cell));
            match numeric(k) && !rows.is_empty() {
                true => text.push_str(&format!(" {pad}{cell} ")),
                false => text.push_str(&format!(" {cell}{pad} ")),
            }
        }
        out.push_str(text.trim_end());
        out.push('\n');
    };
    line(&header.iter().map(|h| h.to_string()).collect::<Vec<_>>());
    line(&widths.iter().map(|&w| "─".repeat(w)).collect::<Vec<_>>());
    for row in rows {
        line(row);
    }
    out
}
