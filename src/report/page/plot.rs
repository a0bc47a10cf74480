//! Plots in SVG: ticks at round numbers, a legend, and what each point is when pointed at.

use maud::{Markup, html};

use super::numbers::{digits, grouped};

/// What to draw.
#[derive(Clone, Debug, Default)]
pub struct Plot {
    pub title: String,
    pub x: Axis,
    pub y: Axis,
    pub series: Vec<Series>,
    pub marks: Vec<Mark>,
}

/// An axis: its name with the unit, and how it is divided.
#[derive(Clone, Debug, Default)]
pub struct Axis {
    pub label: String,
    pub log: bool,
    /// Begins at 0.
    pub zero: bool,
    /// Where ticks stand, instead of at round numbers.
    pub ticks: Vec<f64>,
}

impl Axis {
    pub fn new(label: impl Into<String>) -> Axis {
        Axis {
            label: label.into(),
            ..Axis::default()
        }
    }

    pub fn zero(mut self) -> Axis {
        self.zero = true;
        self
    }

    pub fn log(mut self) -> Axis {
        self.log = true;
        self
    }

    pub fn at(mut self, ticks: Vec<f64>) -> Axis {
        self.ticks = ticks;
        self
    }
}

/// Points under one name.
#[derive(Clone, Debug, Default)]
pub struct Series {
    pub name: String,
    pub points: Vec<(f64, f64)>,
    pub form: Form,
    /// The number of its colour.
    pub colour: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// Joined, in one of four strokes.
    Line(usize),
    #[default]
    Dots,
    /// Joined by a line without points.
    Curve,
    /// Steps down to 0: a point is the left end of a step.
    Steps,
}

/// A vertical line with a name.
#[derive(Clone, Debug)]
pub struct Mark {
    pub x: f64,
    pub name: String,
    pub colour: usize,
}

const WIDTH: f64 = 600.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 52.0;
/// Ticks of an axis, about.
const TICKS: f64 = 5.0;
const COLOURS: usize = 6;
/// More points than these are too many for circles on a line.
const CIRCLES: usize = 64;

impl Plot {
    pub fn html(&self) -> Markup {
        let points = || self.series.iter().flat_map(|s| &s.points);
        let marks = self.marks.iter().map(|m| m.x);
        let x = Scale::new(
            &self.x,
            points().map(|p| p.0).chain(marks),
            LEFT,
            WIDTH - RIGHT,
        );
        let y = Scale::new(&self.y, points().map(|p| p.1), HEIGHT - BOTTOM, TOP);
        let (Some(x), Some(y)) = (x, y) else {
            return html! { figure { h3 { (self.title) } p { "There is nothing to plot." } } };
        };
        html! {
            figure {
                @if !self.title.is_empty() { h3 { (self.title) } }
                svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(format!("{}: {} by {}", self.title, self.y.label, self.x.label)) {
                    (self.axes(&x, &y))
                    @for m in &self.marks { (mark(m, &x)) }
                    @for s in &self.series { (self.series(s, &x, &y)) }
                }
                @if self.series.len() + self.marks.len() > 1 { figcaption { @for s in &self.series { (key(s)) } } }
            }
        }
    }

    fn axes(&self, x: &Scale, y: &Scale) -> Markup {
        let base = HEIGHT - BOTTOM;
        html! {
            @for (v, text) in y.ticks() {
                line.gridline x1=(LEFT) x2=(WIDTH - RIGHT) y1=(px(y.at(v))) y2=(px(y.at(v))) {}
                text.tick x=(LEFT - 8.0) y=(px(y.at(v) + 4.0)) text-anchor="end" { (text) }
            }
            line.base x1=(LEFT) x2=(WIDTH - RIGHT) y1=(base) y2=(base) {}
            @for (v, text) in x.ticks() {
                line.base x1=(px(x.at(v))) x2=(px(x.at(v))) y1=(base) y2=(base + 4.0) {}
                text.tick x=(px(x.at(v))) y=(base + 19.0) text-anchor="middle" { (text) }
            }
            text.axis x=((LEFT + WIDTH - RIGHT) / 2.0) y=(HEIGHT - 8.0) text-anchor="middle" { (self.x.label) }
            text.axis x="0" y="14" { (self.y.label) }
        }
    }

    fn series(&self, s: &Series, x: &Scale, y: &Scale) -> Markup {
        let c = s.colour % COLOURS;
        let shown = || {
            s.points
                .iter()
                .filter(|p| p.0.is_finite() && p.1.is_finite())
        };
        let circles = match s.form {
            Form::Dots => true,
            Form::Line(_) => s.points.len() <= CIRCLES,
            Form::Curve | Form::Steps => false,
        };
        let radius = match (s.form, s.points.len()) {
            (Form::Dots, n) if n > CIRCLES => 2.0,
            _ => 4.0,
        };
        let path: Vec<String> = match s.form {
            Form::Steps => steps(shown().copied(), x, y),
            _ => shown()
                .map(|p| format!("{:.1},{:.1}", x.at(p.0), y.at(p.1)))
                .collect(),
        };
        let tip = |p: &(f64, f64)| {
            let name = if s.name.is_empty() {
                String::new()
            } else {
                format!("{}\n", s.name)
            };
            format!(
                "{name}{}: {}\n{}: {}",
                self.x.label,
                digits(p.0),
                self.y.label,
                digits(p.1)
            )
        };
        html! {
            @match s.form {
                Form::Steps => polygon class=(format!("area s{c} f{c}")) points=(path.join(" ")) { title { (s.name) } },
                Form::Line(stroke) => polyline class=(format!("line s{c} dash{}", stroke % 4)) points=(path.join(" ")) { title { (s.name) } },
                Form::Curve => polyline class=(format!("line s{c}")) points=(path.join(" ")) { title { (s.name) } },
                Form::Dots => {}
            }
            @if circles {
                @for p in shown() {
                    circle class=(if radius < 3.0 { format!("f{c} fade") } else { format!("f{c}") }) cx=(px(x.at(p.0))) cy=(px(y.at(p.1))) r=(radius) { title { (tip(p)) } }
                }
            }
        }
    }
}

/// The corners of steps; the last point ends the last step.
fn steps(points: impl Iterator<Item = (f64, f64)>, x: &Scale, y: &Scale) -> Vec<String> {
    let at = |px: f64, py: f64| format!("{:.1},{:.1}", x.at(px), y.at(py));
    let mut corners = Vec::new();
    let (mut height, mut end) = (0.0, 0.0);
    for (left, next) in points {
        if corners.is_empty() {
            corners.push(at(left, 0.0));
        } else {
            corners.push(at(left, height));
        }
        corners.push(at(left, next));
        (height, end) = (next, left);
    }
    corners.push(at(end, 0.0));
    corners
}

fn mark(m: &Mark, x: &Scale) -> Markup {
    let c = m.colour % COLOURS;
    html! {
        line class=(format!("mark s{c}")) x1=(px(x.at(m.x))) x2=(px(x.at(m.x))) y1=(TOP) y2=(HEIGHT - BOTTOM) {
            title { (m.name) }
        }
    }
}

fn key(s: &Series) -> Markup {
    let c = s.colour % COLOURS;
    html! {
        span.key {
            svg viewBox="0 0 26 12" aria-hidden="true" {
                @match s.form {
                    Form::Dots => circle class=(format!("f{c}")) cx="13" cy="6" r="4" {},
                    Form::Steps => rect class=(format!("area s{c} f{c}")) x="5" y="2" width="16" height="8" {},
                    Form::Line(stroke) => line class=(format!("line s{c} dash{}", stroke % 4)) x1="1" x2="25" y1="6" y2="6" {},
                    Form::Curve => line class=(format!("line s{c}")) x1="1" x2="25" y1="6" y2="6" {},
                }
            }
            (s.name)
        }
    }
}

fn px(v: f64) -> String {
    format!("{v:.1}")
}

/// From numbers to places.
#[derive(Debug)]
struct Scale {
    low: f64,
    high: f64,
    log: bool,
    from: f64,
    to: f64,
    ticks: Vec<f64>,
    /// Between two ticks, where they are at equal distances.
    step: f64,
}

impl Scale {
    /// `None` without a finite number.
    fn new(axis: &Axis, values: impl Iterator<Item = f64>, from: f64, to: f64) -> Option<Scale> {
        let usable = |v: &f64| v.is_finite() && (!axis.log || *v > 0.0);
        let (mut low, mut high) = (values.filter(usable))
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), v| {
                (lo.min(v), hi.max(v))
            });
        if !(low.is_finite() && high.is_finite()) {
            return None;
        }
        let mut scale = Scale {
            low,
            high,
            log: axis.log,
            from,
            to,
            ticks: Vec::new(),
            step: 0.0,
        };
        if axis.log {
            let (down, up) = (low.log10().floor(), high.log10().ceil());
            scale.ticks = axis.ticks.clone();
            if scale.ticks.is_empty() {
                let decades = (down as i32)..=(up as i32).max(down as i32 + 1);
                let every = ((up - down) / 6.0).ceil().max(1.0) as usize;
                scale.ticks = decades.step_by(every).map(|k| 10f64.powi(k)).collect();
            }
            scale.low = low.min(*scale.ticks.first()?);
            scale.high = high.max(*scale.ticks.last()?);
            if scale.low == scale.high {
                (scale.low, scale.high) = (scale.low / 2.0, scale.high * 2.0);
            }
            return Some(scale);
        }
        if axis.zero {
            (low, high) = (low.min(0.0), high.max(0.0));
        }
        if low == high {
            (low, high) = (low - 0.5, high + 0.5);
        }
        let step = round((high - low) / TICKS);
        (scale.low, scale.high, scale.step) = (low, high, step);
        scale.ticks = axis.ticks.clone();
        if scale.ticks.is_empty() {
            // Whole steps at both ends.
            (scale.low, scale.high) = ((low / step).floor() * step, (high / step).ceil() * step);
            let count = ((scale.high - scale.low) / step).round() as usize;
            scale.ticks = (0..=count).map(|k| scale.low + k as f64 * step).collect();
        }
        Some(scale)
    }

    fn at(&self, v: f64) -> f64 {
        let share = match self.log {
            true => (v.max(self.low) / self.low).ln() / (self.high / self.low).ln(),
            false => (v - self.low) / (self.high - self.low),
        };
        self.from + share.clamp(0.0, 1.0) * (self.to - self.from)
    }

    fn ticks(&self) -> Vec<(f64, String)> {
        // Sizes that were given are whole, whatever the distance of round numbers would be.
        let whole = self.ticks.iter().all(|v| v.fract() == 0.0);
        let step = if whole { self.step.max(1.0) } else { self.step };
        let text = |v: f64| match self.log || self.step == 0.0 {
            true => digits(v),
            false => decimals(v, step),
        };
        self.ticks.iter().map(|&v| (v, text(v))).collect()
    }
}

/// 1, 2 or 5 times a power of ten, at least as large.
fn round(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let nice = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .find(|n| n * power >= step * 0.999);
    nice.unwrap_or(10.0) * power
}

/// As many decimals as steps of this size need.
fn decimals(v: f64, step: f64) -> String {
    let places = (-step.log10().floor()).clamp(0.0, 9.0) as usize;
    match v.abs() < step * 1e-6 {
        true => "0".into(),
        false if v.abs() >= 1e5 => grouped(&format!("{v:.0}")),
        false => format!("{v:.places$}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plots_take_any_numbers() {
        let all = [
            &[][..],
            &[(1.0, 1.0)],
            &[(1.0, f64::NAN)],
            &[(1.0, 5.0), (2.0, 5.0)],
            &[(0.0, -3.0), (1e-9, 1e12), (f64::INFINITY, 0.0)],
        ];
        for points in all {
            for (form, log) in [
                (Form::Line(1), false),
                (Form::Dots, true),
                (Form::Steps, false),
                (Form::Curve, true),
            ] {
                let axis = |name: &str| Axis {
                    log,
                    ..Axis::new(name)
                };
                let plot = Plot {
                    title: "t".into(),
                    x: axis("x"),
                    y: axis("y"),
                    series: vec![Series {
                        name: "s".into(),
                        points: points.to_vec(),
                        form,
                        colour: 7,
                    }],
                    marks: Vec::new(),
                };
                let text = plot.html().into_string();
                assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
            }
        }
    }

    #[test]
    fn ticks_are_round_numbers() {
        let texts = |axis: &Axis, values: &[f64]| -> Vec<String> {
            let scale = Scale::new(axis, values.iter().copied(), 0.0, 100.0).unwrap();
            scale.ticks().into_iter().map(|(_, text)| text).collect()
        };
        assert_eq!(
            texts(&Axis::new("").zero(), &[97.3]),
            ["0", "20", "40", "60", "80", "100"]
        );
        assert_eq!(
            texts(&Axis::new(""), &[1.01, 1.03]),
            ["1.010", "1.015", "1.020", "1.025", "1.030"]
        );
        assert_eq!(
            texts(&Axis::new("").log(), &[0.5, 200.0]),
            ["0.1", "1", "10", "100", "1000"]
        );
        assert_eq!(
            texts(&Axis::new("").log().at(vec![32.0, 128.0]), &[32.0, 128.0]),
            ["32", "128"]
        );
    }
}
