//! Writes the seeds of a target into a folder: `seeds TARGET FOLDER`.

use std::path::Path;

fn main() -> std::io::Result<()> {
    let mut args = std::env::args().skip(1);
    let (Some(target), Some(folder)) = (args.next(), args.next()) else {
        eprintln!("usage: seeds TARGET FOLDER");
        std::process::exit(2);
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    std::fs::create_dir_all(&folder)?;
    for (k, seed) in kiln_fuzz::seeds(&root, &target).iter().enumerate() {
        std::fs::write(Path::new(&folder).join(format!("seed-{k:04}")), seed)?;
    }
    Ok(())
}
