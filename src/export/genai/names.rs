//! Names of caches as patterns of their layer's number.

use kiln_graph::Graph;
use kiln_graph::caches::Holds;
use serde_json::{Map, Value};

use crate::generate::{CachePort, Ports};

/// Caches of all layers.
#[derive(Clone, Debug)]
pub(super) struct Layers {
    pub count: usize,
    pub heads: usize,
    pub size: usize,
    /// For each kind: what it holds, inputs and outputs by layer.
    kinds: Vec<(Holds, Vec<String>, Vec<String>)>,
    patterns: Vec<(Holds, String, String)>,
}

/// The layers of a decoder, whose caches the runtime holds.
///
/// # Errors
/// In words, when layers differ in what the runtime has one number for.
pub(super) fn layers(ports: &Ports) -> Result<Layers, String> {
    let mut order: Vec<&CachePort> = ports.caches.iter().collect();
    order.sort_by_key(|c| (c.cache.holds, c.cache.attention));
    let Some(first) = order.first() else {
        return Err("it has no cache".into());
    };
    let (heads, size) = (
        first.cache.heads.unwrap_or(1),
        first.cache.size.unwrap_or(1),
    );
    let other = order
        .iter()
        .find(|c| (c.cache.heads, c.cache.size) != (Some(heads), Some(size)));
    if let Some(c) = other {
        return Err(format!(
            "onnxruntime-genai has one number of heads and one size for all layers, and \"{}\" differs from \"{}\"",
            c.port.name, first.port.name
        ));
    }
    let mut kinds: Vec<(Holds, Vec<String>, Vec<String>)> = Vec::new();
    for c in order {
        if kinds
            .last()
            .is_none_or(|(holds, ..)| *holds != c.cache.holds)
        {
            kinds.push((c.cache.holds, Vec::new(), Vec::new()));
        }
        if let Some((_, inputs, outputs)) = kinds.last_mut() {
            inputs.push(c.port.name.clone());
            outputs.push(c.output.clone().unwrap_or_default());
        }
    }
    let holds: Vec<Holds> = kinds.iter().map(|(holds, ..)| *holds).collect();
    let count = kinds[0].1.len();
    let whole = matches!(holds[..], [Holds::Both] | [Holds::Keys, Holds::Values]);
    if !whole || kinds.iter().any(|(_, inputs, _)| inputs.len() != count) {
        return Err(
            "onnxruntime-genai has a key and a value of each layer, or one tensor of both, and this decoder has other caches"
                .into(),
        );
    }
    Ok(Layers {
        count,
        heads,
        size,
        kinds,
        patterns: Vec::new(),
    })
}

/// Finds patterns that name the caches, or gives caches names that have one.
pub(super) fn settle(
    graph: &mut Graph,
    ports: &Ports,
    mut layers: Layers,
    notes: &mut Vec<String>,
) -> Layers {
    let found: Option<Vec<_>> = (layers.kinds.iter())
        .map(|(holds, inputs, outputs)| Some((*holds, pattern(inputs)?, pattern(outputs)?)))
        .collect();
    let known = |patterns: &Vec<(Holds, String, String)>| {
        let names = graph.inputs().iter().map(|&v| graph.value(v).name());
        let caches = |n: &str| ports.caches.iter().any(|c| c.port.name == n);
        let others: Vec<&str> = names.filter(|n| !caches(n)).collect();
        // The runtime takes any input between the ends of the pattern for a layer's.
        let takes = |of: &str| {
            let (head, tail) = of.split_once(NUMBER).unwrap_or((of, ""));
            others
                .iter()
                .any(|n| n.starts_with(head) && n.ends_with(tail))
        };
        !patterns.iter().any(|(_, input, _)| takes(input))
    };
    if let Some(patterns) = found.filter(known) {
        layers.patterns = patterns;
        return layers;
    }
    for (holds, inputs, outputs) in &layers.kinds {
        let part = match holds {
            Holds::Keys => ".key",
            Holds::Values => ".value",
            Holds::Both => "",
        };
        let (input, output) = (
            format!("past_key_values.{NUMBER}{part}"),
            format!("present.{NUMBER}{part}"),
        );
        for (k, old) in inputs.iter().enumerate() {
            rename_input(graph, old, &numbered(&input, k));
        }
        rename_outputs(graph, outputs, &output);
        layers.patterns.push((*holds, input, output));
    }
    notes.push(
        "the names of its caches have no pattern with the layer's number: in the folder they are past_key_values.%d and present.%d".into(),
    );
    layers
}

fn rename_input(graph: &mut Graph, old: &str, new: &str) {
    let taken = graph
        .values()
        .find(|(_, v)| v.name() == new)
        .map(|(v, _)| v);
    if let Some(other) = taken {
        graph.set_value_name(other, &format!("{new}.inner"));
    }
    let input = (graph.inputs().iter())
        .find(|&&v| graph.value(v).name() == old)
        .copied();
    if let Some(input) = input {
        graph.set_value_name(input, new);
    }
}

fn rename_outputs(graph: &mut Graph, old: &[String], pattern: &str) {
    for output in graph.take_outputs() {
        let place = old.iter().position(|n| **n == *output.name);
        match place {
            Some(k) => graph.add_output(&numbered(pattern, k), output.value),
            None => graph.add_output(&output.name, output.value),
        }
    }
}

const NUMBER: &str = "%d";

fn numbered(pattern: &str, k: usize) -> String {
    pattern.replacen(NUMBER, &k.to_string(), 1)
}

/// `past.%d.key` of past.0.key, past.1.key, …: one place where each name has its number, and the same around it.
fn pattern(names: &[String]) -> Option<String> {
    let first = names.first()?;
    if names.iter().any(|n| n.contains('%')) {
        return None;
    }
    let is_digit = |b: Option<&u8>| b.is_some_and(u8::is_ascii_digit);
    let bytes = first.as_bytes();
    let alone = |at: &usize| {
        !is_digit(bytes.get(at + 1)) && !at.checked_sub(1).is_some_and(|k| is_digit(bytes.get(k)))
    };
    let places = first.match_indices('0').map(|(at, _)| at).filter(alone);
    let candidates = places.map(|at| format!("{}{NUMBER}{}", &first[..at], &first[at + 1..]));
    candidates
        .into_iter()
        .find(|p| (names.iter().enumerate()).all(|(k, n)| *n == numbered(p, k)))
}

impl Layers {
    /// The runtime's type of the model.
    pub fn kind(&self) -> &'static str {
        match self.patterns.first() {
            Some((Holds::Both, ..)) => "gpt2",
            _ => "decoder",
        }
    }

    /// The patterns of inputs by the runtime's keys.
    pub fn inputs(&self) -> Map<String, Value> {
        self.by_key("past", |(_, input, _)| input)
    }

    /// The patterns of outputs by the runtime's keys.
    pub fn outputs(&self) -> Map<String, Value> {
        self.by_key("present", |(_, _, output)| output)
    }

    fn by_key(
        &self,
        side: &str,
        of: impl Fn(&(Holds, String, String)) -> &String,
    ) -> Map<String, Value> {
        let key = |holds: Holds| match holds {
            Holds::Keys => format!("{side}_key_names"),
            Holds::Values => format!("{side}_value_names"),
            Holds::Both => format!("{side}_names"),
        };
        let all = self.patterns.iter();
        all.map(|p| (key(p.0), of(p).as_str().into())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(names: &[&str]) -> Option<String> {
        let names: Vec<String> = names.iter().map(|n| n.to_string()).collect();
        pattern(&names)
    }

    #[test]
    fn a_pattern_is_what_all_names_have_around_their_number() {
        assert_eq!(of(&["past.0.key", "past.1.key"]).unwrap(), "past.%d.key");
        assert_eq!(of(&["l0_k0", "l0_k1"]).unwrap(), "l0_k%d");
        let many: Vec<String> = (0..12).map(|k| format!("h{k}x")).collect();
        assert_eq!(pattern(&many).unwrap(), "h%dx");
        for none in [
            &["a", "b"][..],
            &["k1", "k2"],
            &["k.00", "k.01"],
            &["k0%", "k1%"],
            &[],
        ] {
            assert_eq!(of(none), None, "{none:?}");
        }
    }
}
