//! A report as data: sections of text, tables and plots, written as Markdown and as HTML.

use maud::{Markup, html};

use super::markdown_table;
use super::page::{self, Series};

/// A part of a section.
#[derive(Clone, Debug)]
pub enum Part {
    Text(String),
    /// Text that must not be overlooked.
    Loud(String),
    List(Vec<String>),
    Table(Vec<&'static str>, Vec<Vec<String>>),
    /// Label, length and words of each bar; Markdown has no room for it.
    Bars(String, Vec<(String, f64, String)>),
    /// A plot, with the names of both axes; HTML only.
    Plot(String, &'static str, &'static str, Vec<Series>),
}

/// Parts under a title.
#[derive(Clone, Debug)]
pub struct Section {
    pub title: &'static str,
    pub parts: Vec<Part>,
}

impl Section {
    pub fn markdown(&self) -> String {
        let parts: Vec<String> = self.parts.iter().filter_map(Part::markdown).collect();
        format!("\n## {}\n\n{}", self.title, parts.join("\n"))
    }

    pub fn html(&self) -> Markup {
        html! { @for part in &self.parts { (part.html()) } }
    }
}

impl Part {
    /// `None` for what Markdown has no room for.
    pub fn markdown(&self) -> Option<String> {
        Some(match self {
            Part::Text(text) => format!("{text}\n"),
            Part::Loud(text) => format!("**{text}**\n"),
            Part::List(lines) if lines.is_empty() => return None,
            Part::List(lines) => lines.iter().map(|l| format!("- {l}\n")).collect(),
            Part::Table(header, rows) => markdown_table(header, rows.iter().cloned()),
            Part::Bars(..) | Part::Plot(..) => return None,
        })
    }

    pub fn html(&self) -> Markup {
        match self {
            Part::Text(text) => html! { p { (inline(text)) } },
            Part::Loud(text) => html! { p { strong { (text) } } },
            Part::List(lines) => {
                html! { @if !lines.is_empty() { ul { @for line in lines { li { (inline(line)) } } } } }
            }
            Part::Table(header, rows) => page::table(header, rows),
            Part::Bars(title, parts) => html! { h3 { (title) } (page::bars(parts)) },
            Part::Plot(title, x, y, series) => html! { h3 { (title) } (page::plot(x, y, series)) },
        }
    }
}

/// Code between backticks.
fn inline(text: &str) -> Markup {
    html! {
        @for (k, part) in text.split('`').enumerate() {
            @if k % 2 == 1 { code { (part) } } @else { (part) }
        }
    }
}
