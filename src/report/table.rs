//! Tables for the terminal.

/// Columns that a narrow table does without, the least important first.
const LEAST_FIRST: [&str; 16] = [
    "elements", "GFLOP", "argmax", "NaN/Inf", "p95 ms", "runs", "SQNR dB", "noise", "p90 ms",
    "items/s", "of limit", "max abs", "limit", "p99 ms", "threads", "params",
];

/// A cell is not shortened to less.
const SHORTEST: usize = 12;

/// As [`table`], no wider than this if that is possible: the least important columns go, then long text loses its middle.
pub(crate) fn fitted(header: &[&str], rows: &[Vec<String>], width: Option<usize>) -> String {
    let Some(width) = width else {
        return table(header, rows);
    };
    let mut header = header.to_vec();
    let mut rows = rows.to_vec();
    for name in LEAST_FIRST {
        if wide(&widths(&header, &rows)) <= width {
            break;
        }
        let Some(at) = header.iter().position(|h| *h == name) else {
            continue;
        };
        header.remove(at);
        for row in rows.iter_mut().filter(|r| at < r.len()) {
            row.remove(at);
        }
    }
    let heads = widths(&header, &[]);
    loop {
        let found = widths(&header, &rows);
        let over = wide(&found).saturating_sub(width);
        // A column is as wide as its header at least.
        let cells = found.iter().zip(&heads).enumerate();
        let longer = cells.filter(|(_, (w, head))| w > head);
        let Some((at, (&most, &head))) = longer.max_by_key(|(_, (w, _))| **w) else {
            break;
        };
        // Not below the next column at once, so that two long ones share the loss.
        let next = found.iter().filter(|w| **w < most).max().copied();
        let least = most
            .saturating_sub(over)
            .max(next.unwrap_or(0))
            .max(SHORTEST)
            .max(head);
        if over == 0 || least >= most {
            break;
        }
        for cell in rows.iter_mut().filter_map(|r| r.get_mut(at)) {
            *cell = shortened(cell, least);
        }
    }
    table(&header, &rows)
}

/// Its beginning and its end.
fn shortened(text: &str, most: usize) -> String {
    let all: Vec<char> = text.chars().collect();
    if all.len() <= most {
        return text.to_string();
    }
    let front = (most - 1) / 2;
    let back = most - 1 - front;
    let ends = [&all[..front], &['…'], &all[all.len() - back..]];
    ends.concat().into_iter().collect()
}

/// The width of a table with columns of these widths.
fn wide(widths: &[usize]) -> usize {
    widths.iter().map(|w| w + 2).sum()
}

fn widths(header: &[&str], rows: &[Vec<String>]) -> Vec<usize> {
    let width = |s: &str| s.chars().count();
    let mut widths: Vec<usize> = header.iter().map(|h| width(h)).collect();
    for row in rows {
        for (column, cell) in widths.iter_mut().zip(row) {
            *column = width(cell).max(*column);
        }
    }
    widths
}

/// Rows under a header, columns aligned: text to the left, numbers to the right.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |s: &str| s.chars().count();
    let columns = header.len();
    let widths = self::widths(header, rows);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn widest(text: &str) -> usize {
        text.lines().map(|l| l.chars().count()).max().unwrap_or(0)
    }

    #[test]
    fn a_header_wider_than_all_cells_ends_the_search() {
        let rows = [vec!["m".to_string(), "1.0".into()]];
        let text = fitted(
            &["model", "a header wider than the screen"],
            &rows,
            Some(12),
        );
        assert!(text.contains("a header wider than the screen"));
        let rows = [vec![
            "a name that is far too long".to_string(),
            "1.0".into(),
        ]];
        let text = fitted(
            &["model", "a header wider than the screen"],
            &rows,
            Some(12),
        );
        assert!(text.contains('…') && text.contains("1.0"));
    }

    #[test]
    fn narrow_tables_lose_columns_before_letters() {
        let header = ["case", "output", "elements", "cosine", "SQNR dB", "verdict"];
        let cells = [
            "typical",
            "last_hidden_state",
            "49152",
            "0.9999999",
            "83.1",
            "ok",
        ];
        let rows = [cells.map(String::from).to_vec()];
        assert_eq!(fitted(&header, &rows, None), table(&header, &rows));
        assert_eq!(fitted(&header, &rows, Some(110)), table(&header, &rows));
        let all = widest(&table(&header, &rows));
        let less = fitted(&header, &rows, Some(all - 1));
        assert!(
            !less.contains("elements") && less.contains("SQNR dB"),
            "{less}"
        );
        let least = fitted(&header, &rows, Some(44));
        assert!(
            least.contains("0.9999999") && least.contains("ok"),
            "{least}"
        );
        assert!(widest(&least) <= 44 && least.contains('…'), "{least}");
    }

    #[test]
    fn no_width_is_too_narrow() {
        let rows = [vec!["päth/to/a/modél.onnx".to_string(), "x".repeat(300)]];
        for width in 0..60 {
            fitted(&["model", "why"], &rows, Some(width));
            // Nor where a header is longer than what stands under it.
            let short = [vec!["a".to_string(), "b".repeat(width)]];
            let told = fitted(&["kernels of all attentions", "why"], &short, Some(width));
            assert!(told.contains("kernels of all attentions"), "{told}");
        }
        assert!(widest(&fitted(&["model", "why"], &rows, Some(60))) <= 60);
        assert_eq!(shortened("abcdefghijklmnop", 12), "abcde…klmnop");
    }
}
