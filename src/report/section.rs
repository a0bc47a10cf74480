//! A report as data: sections of text, tables and plots, written as Markdown and as HTML.

use maud::{Markup, html};

use super::markdown_table;
use super::page::{self, Plot};

/// A part of a section.
#[derive(Clone, Debug)]
pub enum Part {
    /// A heading below the section's.
    Head(String),
    Text(String),
    /// Text that must not be overlooked.
    Loud(String),
    List(Vec<String>),
    Table(Vec<&'static str>, Vec<Vec<String>>),
    /// Details for those who want them.
    Fold(String, Vec<Part>),
    /// Label, length and words of each bar, under titles; Markdown has no room for them.
    Bars(Vec<(String, Vec<(String, f64, String)>)>),
    /// Label, and a number before and after; HTML only.
    Changes(Vec<(String, usize, usize)>),
    /// HTML only.
    Plots(Vec<Plot>),
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
            Part::Head(text) => format!("### {text}\n"),
            Part::Text(text) => format!("{text}\n"),
            Part::Loud(text) => format!("**{text}**\n"),
            Part::List(lines) if lines.is_empty() => return None,
            Part::List(lines) => lines.iter().map(|l| format!("- {l}\n")).collect(),
            Part::Table(_, rows) if rows.is_empty() => return None,
            Part::Table(header, rows) => markdown_table(header, rows.iter().cloned()),
            Part::Fold(title, parts) => {
                let parts: Vec<String> = parts.iter().filter_map(Part::markdown).collect();
                format!(
                    "<details><summary>{title}</summary>\n\n{}\n</details>\n",
                    parts.join("\n")
                )
            }
            Part::Bars(..) | Part::Changes(..) | Part::Plots(..) => return None,
        })
    }

    pub fn html(&self) -> Markup {
        match self {
            Part::Head(text) => html! { h3 { (inline(text)) } },
            Part::Text(text) => html! { p { (inline(text)) } },
            Part::Loud(text) => html! { p { strong { (text) } } },
            Part::List(lines) => {
                html! { @if !lines.is_empty() { ul { @for line in lines { li { (inline(line)) } } } } }
            }
            Part::Table(header, rows) => {
                html! { @if !rows.is_empty() { (page::table(header, rows)) } }
            }
            Part::Fold(title, parts) => html! {
                details { summary { (title) } @for part in parts { (part.html()) } }
            },
            Part::Bars(all) => html! {
                div.figures {
                    @for (title, parts) in all { div { h3 { (inline(title)) } (page::bars(parts)) } }
                }
            },
            Part::Changes(parts) => page::changes(parts),
            Part::Plots(plots) => {
                html! { div.figures { @for plot in plots { (plot.html()) } } }
            }
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
