//! ONNX text: models, graphs and functions as people write and read them.
//!
//! The syntax is the one that ONNX's own parser and printer define:
//!
//! ```text
//! <
//!   ir_version: 10,
//!   opset_import: ["" : 20, "com.microsoft" : 1]
//! >
//! block (float[batch, 4] x) => (float[batch, 4] y) <
//!   float[4] weight = {1.0, 2.0, -0.5, 1e-7},
//!   float16[1024, 1024] table = ["location": "block.data", "offset": "0", "length": "2097152"],
//!   float[batch, 4] scaled
//! > {
//!   # comments run to the end of the line
//!   [mul] scaled = Mul(x, weight)
//!   ["/act/Gelu"] y = com.microsoft.FastGelu<approximate = "tanh">(scaled, "")
//! }
//! ```
//!
//! Printing in full and parsing gives back the same model bit for bit, save for what the text cannot say (below).
//! Element data is parsed into `raw_data`, little endian, whatever the type; strings into `string_data`.
//!
//! # Where the text is not obvious
//!
//! - `float` is a scalar, `float[]` a tensor of unknown rank, `?` an unknown dimension.
//! - A name that is no plain identifier is quoted. In a string a backslash makes the next character plain, no more:
//!   a line break stands for itself.
//! - In a tensor of a float type narrower than 32 bits, a number without dot or exponent is the element's *bits*, as in
//!   the reference parser: `float16 {1.0}` is one, `float16 {1}` the smallest subnormal. The printer writes decimals.
//! - The elements of complex tensors are pairs of numbers in a row.
//!
//! # More than the reference syntax
//!
//! - A literal as an input of a node: `Div(x, {1.41421356})`. It becomes a Constant node in front, its output named so
//!   that no other name is met. One element is a scalar, more are 1-D; numbers with a dot are float, without int64; a
//!   type says otherwise: `float {2}`, `int64[1] {-1}`.
//! - `{@epsilon}` as an input is the value of the function's attribute: a Constant node with `value_float = @epsilon`;
//!   `{int @axis}`, `{ints @axes}` and so on for the other types.
//! - Decimals in tensors of narrow float types; packed 4-bit, 2-bit and 6-bit types; `nan(0x7fc00001)` for a NaN other
//!   than the default one.
//! - `b"\xff"` for strings that are not UTF-8.
//! - Lists of tensors, graphs and types; `sparse_tensor(float[8]) {float[1] {1.0}, int64[1] {3}}` as an attribute's
//!   value, and with a name and `=` as an initializer.
//! - Quotes around operators, domains (as a whole), overloads, attributes' names, and the names of graphs and tensors in
//!   attributes.
//!
//! # What the text cannot say
//!
//! The printer drops: documentation of graphs, nodes, attributes, values and tensors; metadata of all but the model;
//! denotations of types and dimensions; quantization annotations; training information; device configurations; the
//! segment of a tensor. Empty and absent strings are one, as are `raw_data` and the typed lists of a tensor. A tensor
//! whose data does not fit its shape, or of an unknown type, is printed as `{... unreadable}`, which does not parse.

mod elem;
mod error;
mod lexer;
mod minifloat;
mod parse;
mod parse_attr;
mod parse_tensor;
mod parse_type;
mod print;
mod print_value;
mod tensor;
mod types;

#[cfg(test)]
mod tests;

pub use error::ParseError;
pub use parse::{parse_function, parse_functions, parse_graph, parse_model};
pub use print::{PrintOptions, print_function, print_graph, print_model, print_node};

/// A word that starts a type, and so can be a name only in quotes.
fn is_type_word(word: &str) -> bool {
    matches!(
        word,
        "seq" | "map" | "optional" | "sparse_tensor" | "opaque"
    ) || elem::Elem::named(word).is_some()
}
