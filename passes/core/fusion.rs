//! Fusions: an ONNX function read from right to left.

use std::sync::OnceLock;

use kiln_graph::{Attr, Attrs, Function, Graph, NodeId, Op, text};

use super::pass::{Context, Exactness, Miss};
use super::patch::{Patch, Ref};
use super::pattern::{self, Match};
use super::rule::Rule;

/// A fusion as data: what it makes is a call of the function that its bodies spell out.
///
/// Each body is a function in ONNX text with the operator's own name, inputs and attributes; an attribute with a
/// default in the signature is set to that value in the call. A body writes a product in one order of many
/// ([`super::product`]), and a Cast back to the 16-bit type of the first input as `Cast <to: int = @T>`. From the bodies come the matcher, the documentation and
/// the proof that call and body compute the same.
pub struct Fusion {
    pub name: &'static str,
    pub about: &'static str,
    /// Why the equation holds, and what it leaves alone.
    pub why: &'static str,
    pub bodies: &'static [&'static str],
    /// What a body cannot say: ranks, axes, sizes.
    pub guard: fn(&Graph, &Match) -> Result<(), Miss>,
    /// The change, where it is not the call that a body's signature says.
    pub build: Option<Build>,
    pub parsed: OnceLock<Vec<Parsed>>,
}

/// Makes the change of one match.
pub type Build = fn(&Graph, &Match, &Context<'_>) -> Result<Patch, Miss>;

impl std::fmt::Debug for Fusion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Fusion").field(&self.name).finish()
    }
}

/// A body, parsed: the function, the attributes its signature fixes, and the operator at its root.
#[derive(Debug)]
pub struct Parsed {
    pub function: Function,
    pub fixed: Vec<(String, Attr)>,
    root: Op,
}

impl Fusion {
    /// The parsed bodies. That each of them parses is a test; one that does not is left out.
    pub fn functions(&self) -> &[Parsed] {
        self.parsed.get_or_init(|| {
            let parse = |body: &&str| parse(body).ok();
            self.bodies.iter().filter_map(parse).collect()
        })
    }
}

impl Parsed {
    /// Whether the graph's operator may be the body's last. A product by a number may be a quotient.
    fn may_end_in(&self, op: Op) -> bool {
        self.root == op || self.root.is("Mul") && op.is("Div")
    }
}

/// Parses a body.
///
/// # Errors
/// What is wrong with it, in words.
pub fn parse(body: &str) -> Result<Parsed, String> {
    let message = text::parse_function(body).map_err(|e| e.to_string())?;
    let fixed = kiln_graph::onnx::attribute_defaults(&message).map_err(|e| e.to_string())?;
    let function = kiln_graph::onnx::function(message).map_err(|e| e.to_string())?;
    let output = function.body.outputs().first().ok_or("no output")?.value;
    let root = function
        .body
        .producer(output)
        .ok_or("the output is not computed")?;
    Ok(Parsed {
        root: function.body.node(root).op(),
        function,
        fixed,
    })
}

impl Rule for Fusion {
    fn name(&self) -> &'static str {
        self.name
    }

    fn about(&self) -> &'static str {
        self.about
    }

    fn details(&self) -> String {
        let mut out = format!(
            "{}\n\nReplaces any of these by one operator; a product stands for every order and nesting of its factors:\n",
            self.why
        );
        for body in self.bodies {
            out.push('\n');
            out.push_str(body.trim_matches('\n'));
            out.push('\n');
        }
        out
    }

    fn exactness(&self) -> Exactness {
        Exactness::Rounding
    }

    fn roots(&self) -> &[&'static str] {
        &[]
    }

    fn fusion(&self) -> Option<&Fusion> {
        Some(self)
    }

    fn rewrite(&self, g: &Graph, root: NodeId, cx: &Context<'_>) -> Result<Patch, Miss> {
        let mut deepest = Miss::none();
        let op = g.node(root).op();
        for body in self.functions().iter().filter(|b| b.may_end_in(op)) {
            let made = pattern::find(&body.function, g, root).and_then(|ways| {
                let mut miss = Miss::none();
                for way in ways {
                    let made = (self.guard)(g, &way).and_then(|()| match self.build {
                        Some(build) => build(g, &way, cx),
                        None => Ok(call(body, &way)),
                    });
                    match made {
                        Ok(patch) => return Ok(patch),
                        Err(m) => miss = m,
                    }
                }
                Err(miss)
            });
            match made {
                Ok(patch) => return Ok(patch),
                Err(miss) if miss.depth > deepest.depth => deepest = miss,
                Err(_) => {}
            }
        }
        Err(deepest)
    }
}

fn call(body: &Parsed, found: &Match) -> Patch {
    let mut attrs = Attrs::new();
    for (name, attr) in &body.fixed {
        attrs.set(name, attr.clone());
    }
    // What else is bound speaks of the body alone.
    let own = &body.function.attributes;
    for (name, attr) in found.attrs().filter(|(n, _)| own.iter().any(|o| o == n)) {
        attrs.set(name, attr.clone());
    }
    let op = Op::new(&body.function.domain, &body.function.name);
    let inputs = found.inputs.iter().map(|v| v.map(Ref::Old));
    let mut patch = Patch::new();
    let made = patch.node_with(op, inputs, 1, attrs);
    if let Some(output) = found.output {
        patch.replace(output, made[0]);
    }
    patch
}
