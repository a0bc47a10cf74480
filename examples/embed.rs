//! kiln in a program of one's own: a model becomes a bundle for the CPU, in FP16, and is compared again.
//!
//! `cargo run --example embed -- model.onnx model.kiln`

use kiln::check::{Against, Options as CheckOptions};
use kiln::precision::Floats;
use kiln::talk::Silent;
use kiln::{Error, Options, Outcome, Precision, Target};

fn compiled(model: &str, bundle: &str) -> Result<Outcome, Error> {
    let options = Options {
        output: Some(bundle.into()),
        targets: Some(Target::Cpu),
        precision: Precision {
            floats: Floats::Fp16,
            ..Precision::default()
        },
        ..Options::new(model)
    };
    kiln::compile(&options, &Silent)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(model), Some(bundle)) = (args.next(), args.next()) else {
        return Err("give a model and a place for the bundle".into());
    };
    let outcome = compiled(&model, &bundle)?;
    println!("{}", outcome.bundle.display());
    let checked = kiln::check(
        &CheckOptions::new(&outcome.bundle, Against::Reference(model.into())),
        &Silent,
    )?;
    println!("the same function: {}", checked.pass());
    Ok(())
}
