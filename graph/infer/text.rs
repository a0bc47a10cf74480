//! Expressions as text, both ways.
//!
//! The text of an expression is what [`crate::Dim::Symbol`] holds. Parsing it gives the same expression back, so types
//! written into a graph mean the same in a later run. A name that is no plain identifier is one symbol as a whole, and
//! is quoted where it stands inside a larger expression.

use std::fmt;

use super::atom::{Atom, Term};
use super::expr::Expr;

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(value) = self.as_i64() {
            return write!(f, "{value}");
        }
        if let Some(Atom::Symbol(name)) = self.lone_atom() {
            return f.write_str(name);
        }
        for (k, term) in self.terms().iter().enumerate() {
            let sign = match (k, term.coeff < 0) {
                (0, false) => "",
                (0, true) => "-",
                (_, false) => " + ",
                (_, true) => " - ",
            };
            f.write_str(sign)?;
            write_term(term, self.terms().len() == 1, f)?;
        }
        Ok(())
    }
}

fn write_term(term: &Term, alone: bool, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let size = term.coeff.unsigned_abs();
    if size != 1 || term.factors.is_empty() {
        write!(f, "{size}")?;
    }
    let inside = size != 1 || term.factors.len() > 1 || (alone && term.coeff < 0);
    for (k, atom) in term.factors.iter().enumerate() {
        if k > 0 || size != 1 {
            f.write_str("*")?;
        }
        write_atom(atom, inside, f)?;
    }
    Ok(())
}

fn write_atom(atom: &Atom, inside: bool, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let list = |name: &str, arms: &[Expr], f: &mut fmt::Formatter<'_>| {
        write!(f, "{name}(")?;
        for (k, arm) in arms.iter().enumerate() {
            f.write_str(if k > 0 { ", " } else { "" })?;
            write_operand(arm, f)?;
        }
        f.write_str(")")
    };
    match atom {
        Atom::Symbol(name) if is_identifier(name) => f.write_str(name),
        Atom::Symbol(name) => write!(f, "'{name}'"),
        Atom::Fresh { id, .. } => write!(f, "?{id}"),
        Atom::Floor(parts) => {
            f.write_str(if inside { "(" } else { "" })?;
            write_divided(&parts.0, f)?;
            f.write_str("//")?;
            write_divided(&parts.1, f)?;
            f.write_str(if inside { ")" } else { "" })
        }
        Atom::Max(arms) => list("max", arms, f),
        Atom::Min(arms) => list("min", arms, f),
        Atom::Broadcast(arms) => list("broadcast", arms, f),
    }
}

/// A lone symbol inside something is quoted if need be, which the text of a whole expression does not do.
fn write_operand(expr: &Expr, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match expr.lone_atom() {
        Some(atom) => write_atom(atom, false, f),
        None => write!(f, "{expr}"),
    }
}

fn write_divided(expr: &Expr, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match (expr.lone_atom(), expr.as_i64()) {
        (Some(atom), _) => write_atom(atom, true, f),
        (_, Some(0..)) => write!(f, "{expr}"),
        _ => write!(f, "({expr})"),
    }
}

fn is_identifier(name: &str) -> bool {
    let mut chars = name.chars();
    chars
        .next()
        .is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.'))
}

impl Expr {
    /// The expression that a symbolic dimension's text stands for; a text that is not an expression is a symbol.
    pub fn parse(text: &str) -> Expr {
        if is_identifier(text) {
            return Expr::symbol(text);
        }
        let mut parser = Parser {
            rest: text,
            depth: 0,
        };
        match parser.sum() {
            Some(expr) if parser.rest.is_empty() && expr.as_i64().is_none() => expr,
            _ => Expr::symbol(text),
        }
    }
}

const MAX_DEPTH: u32 = 32;

struct Parser<'a> {
    rest: &'a str,
    depth: u32,
}

impl<'a> Parser<'a> {
    fn eat(&mut self, token: &str) -> bool {
        let rest = self.rest.strip_prefix(token);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    /// Sums need spaces around the sign: `batch-size` is a name.
    fn sum(&mut self) -> Option<Expr> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        let minus = self.eat("-");
        let mut sum = self.product()?;
        if minus {
            sum = sum.mul(&Expr::from(-1))?;
        }
        loop {
            if self.eat(" + ") {
                sum = sum.add(&self.product()?)?;
            } else if self.eat(" - ") {
                sum = sum.sub(&self.product()?)?;
            } else {
                self.depth -= 1;
                return Some(sum);
            }
        }
    }

    fn product(&mut self) -> Option<Expr> {
        let mut product = self.atom()?;
        loop {
            if self.eat("//") {
                product = product.floor_div(&self.atom()?)?;
            } else if self.eat("*") {
                product = product.mul(&self.atom()?)?;
            } else {
                return Some(product);
            }
        }
    }

    fn atom(&mut self) -> Option<Expr> {
        if self.eat("(") {
            let inner = self.sum()?;
            return self.eat(")").then_some(inner);
        }
        if self.eat("'") {
            let (name, rest) = self.rest.split_once('\'')?;
            self.rest = rest;
            return Some(Expr::symbol(name));
        }
        let end =
            |allowed: fn(char) -> bool| self.rest.find(|c| !allowed(c)).unwrap_or(self.rest.len());
        if self.rest.starts_with(|c: char| c.is_ascii_digit()) {
            let (digits, rest) = self.rest.split_at(end(|c| c.is_ascii_digit()));
            self.rest = rest;
            return digits.parse::<i64>().ok().map(Expr::from);
        }
        let (name, rest) = self
            .rest
            .split_at(end(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.')));
        self.rest = rest;
        if !is_identifier(name) {
            return None;
        }
        let join = match name {
            "max" | "Max" => Expr::maximum,
            "min" | "Min" => Expr::minimum,
            "broadcast" => Expr::broadcast,
            _ => return Some(Expr::symbol(name)),
        };
        if !self.eat("(") {
            return Some(Expr::symbol(name));
        }
        let mut all = self.sum()?;
        while self.eat(", ") {
            all = join(&all, &self.sum()?)?;
        }
        self.eat(")").then_some(all)
    }
}
