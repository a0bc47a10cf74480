fn main() {
    let args: Vec<String> = std::env::args().collect();
    let model = match kiln_graph::onnx::read(&args[1]) {
        Ok(m) => m,
        Err(e) => {
            eprintln!("{e}");
            std::process::exit(3)
        }
    };
    kiln_graph::onnx::write(&model, &args[2], &Default::default()).unwrap();
}
