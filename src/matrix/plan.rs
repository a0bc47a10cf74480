//! A plan: models, targets and precisions, crossed into cells.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cache::Store;
use crate::precision::{Floats, Linear};
use crate::recipe::{self, Precision, Recipe, RecipeError, Targets};

/// A plan, as its file has it. Paths are relative to its folder.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    /// By the names that cells have: a path, or a recipe.
    models: std::collections::BTreeMap<String, OneModel>,
    /// As `--target`: cpu, sm_89, or several for one engine, sm_86,sm_89.
    targets: Vec<String>,
    /// fp32, fp16, bf16, int8, int8-dynamic, fp8, int4, or two of them: int8+fp16.
    #[serde(default = "only_fp32")]
    precisions: Vec<String>,
    /// What all cells have: a recipe.
    #[serde(default)]
    base: Recipe,
    /// Cells that there are not; what is not given stands for all.
    #[serde(default)]
    exclude: Vec<Excluded>,
    /// Where bundles and results go.
    #[serde(default = "in_fleet")]
    output: PathBuf,
    /// Where bundles are kept by what they were made of.
    cache: Option<PathBuf>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum OneModel {
    Path(PathBuf),
    Recipe(Box<Recipe>),
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Excluded {
    model: Option<String>,
    target: Option<String>,
    precision: Option<String>,
}

fn only_fp32() -> Vec<String> {
    vec!["fp32".into()]
}

fn in_fleet() -> PathBuf {
    "fleet".into()
}

/// A plan cannot be used, or a cell cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum MatrixError {
    #[error("{}: {reason}", path.display())]
    Plan { path: PathBuf, reason: String },
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    #[error("there is no cell {asked}; there are {count}, from 0 on: {some}")]
    NoCell {
        asked: String,
        count: usize,
        some: String,
    },
    #[error("{}: {why}: {source}", path.display())]
    Io {
        path: PathBuf,
        why: &'static str,
        source: std::io::Error,
    },
}

/// One compilation of a plan.
#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    pub index: usize,
    /// `minilm-sm_89-fp16`, which is part of the names of its files.
    pub id: String,
    pub model: String,
    pub target: String,
    pub precision: String,
    /// The command that runs it.
    pub argv: Vec<String>,
    pub needs: Needs,
    /// The bundle, and the file that says how it went.
    pub outputs: [PathBuf; 2],
    /// What `kiln compile -c` would compile.
    pub recipe: Recipe,
}

/// What a machine must have for a cell.
#[derive(Clone, Debug, Serialize)]
pub struct Needs {
    /// TensorRT, to build an engine.
    pub tensorrt: bool,
    /// A GPU of one of these compute capabilities: for the engine's parity, or an engine without weights. Empty: none.
    pub gpus: Vec<String>,
    /// Megabytes of memory, by the model's size.
    pub memory_mb: u64,
    pub cpus: usize,
}

/// A plan that was read.
#[derive(Clone, Debug)]
pub struct Plan {
    pub path: PathBuf,
    pub output: PathBuf,
    pub cache: Option<Store>,
    pub models: Vec<String>,
    pub targets: Vec<String>,
    pub precisions: Vec<String>,
    pub cells: Vec<Cell>,
}

/// Memory that a compilation takes beside the model, and how many times the model it holds: the original and the result in
/// ONNX Runtime, and both in kiln. Measured on the models of docs/performance.md, rounded up.
const MEMORY_MB: u64 = 1500;
const COPIES: u64 = 5;

impl Plan {
    /// Reads a plan and crosses it.
    ///
    /// # Errors
    /// When the file cannot be read, or names what there is not.
    pub fn read(path: &Path) -> Result<Plan, MatrixError> {
        let fail = |reason: String| MatrixError::Plan {
            path: path.to_path_buf(),
            reason,
        };
        let text = fs::read_to_string(path).map_err(|e| fail(e.to_string()))?;
        let value: Value = serde_saphyr::from_str(&text).map_err(|e| fail(e.to_string()))?;
        let models = value["models"].as_object().into_iter().flatten();
        let models = models.map(|(name, model)| (format!("models.{name}"), model));
        let recipes = models.chain(value.get("base").map(|base| ("base".into(), base)));
        for (at, recipe) in recipes.filter(|(_, recipe)| recipe.is_object()) {
            recipe::known_keys(path, recipe, &at)?;
        }
        let file: File = serde_json::from_value(value).map_err(|e| fail(e.to_string()))?;
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        let absolute = std::path::absolute(folder).unwrap_or_else(|_| folder.to_path_buf());
        let output = absolute.join(&file.output);
        let cache = file.cache.clone().map(|c| Store::at(c.into())).transpose();
        let cache = cache.map_err(|e| fail(format!("cache: {e}")))?;
        let mut plan = Plan {
            path: std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf()),
            cache: cache.map(|c| c.within(&absolute)),
            models: file.models.keys().cloned().collect(),
            targets: file.targets.clone(),
            precisions: file.precisions.clone(),
            output,
            cells: Vec::new(),
        };
        file.known(&plan).map_err(fail)?;
        for (name, model) in &file.models {
            let own = match model {
                OneModel::Path(path) => Recipe {
                    model: Some(path.clone()),
                    ..Recipe::default()
                },
                OneModel::Recipe(recipe) => (**recipe).clone(),
            };
            let own = own.over(&file.base).map_err(|e| fail(e.to_string()))?;
            let own = own.placed(folder);
            if own.model.is_none() {
                return Err(fail(format!("models.{name} has no `model`")));
            }
            for target in &file.targets {
                for precision in &file.precisions {
                    if file.exclude.iter().any(|e| e.fits(name, target, precision)) {
                        continue;
                    }
                    let cell = plan.cell(&own, name, target, precision).map_err(fail)?;
                    plan.cells.push(cell);
                }
            }
        }
        match plan.cells.is_empty() {
            true => Err(fail("it has no cells".into())),
            false => Ok(plan),
        }
    }

    fn cell(
        &self,
        own: &Recipe,
        model: &str,
        target: &str,
        precision: &str,
    ) -> Result<Cell, String> {
        let plain = target.replace(',', "_");
        let id = format!("{model}-{plain}-{precision}");
        let bundle = self.output.join(format!("{id}.kiln"));
        let (floats, linear) = formats(precision)?;
        let recipe = Recipe {
            target: Some(Targets::One(target.to_string())),
            output: Some(bundle.clone()),
            precision: Precision {
                floats,
                linear,
                ..own.precision.clone()
            },
            ..own.clone()
        };
        let bytes = recipe.model.as_ref().map_or(0, |m| model_bytes(m));
        let on_gpu = recipe.gates.engine_parity == Some(true)
            || recipe.build.refittable == Some(true)
            || recipe.build.weight_stripped == Some(true);
        Ok(Cell {
            index: self.cells.len(),
            model: model.to_string(),
            target: target.to_string(),
            precision: precision.to_string(),
            argv: vec![
                "kiln".into(),
                "matrix".into(),
                "run".into(),
                self.path.display().to_string(),
                id.clone(),
            ],
            needs: Needs {
                tensorrt: target != "cpu" && target != "cuda" && recipe.engine != Some(false),
                gpus: match on_gpu {
                    true => target.split(',').map(str::to_string).collect(),
                    false => Vec::new(),
                },
                memory_mb: MEMORY_MB + COPIES * bytes.div_ceil(1 << 20),
                cpus: 2,
            },
            outputs: [bundle, self.output.join(format!("{id}.json"))],
            recipe,
            id,
        })
    }

    /// A cell by its name or number.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(&self, asked: &str) -> Result<&Cell, MatrixError> {
        let number = asked.parse().ok().and_then(|k: usize| self.cells.get(k));
        let named = self.cells.iter().find(|c| c.id == asked);
        named.or(number).ok_or_else(|| MatrixError::NoCell {
            asked: asked.to_string(),
            count: self.cells.len(),
            some: {
                let ids = self.cells.iter().take(4).map(|c| c.id.as_str());
                ids.collect::<Vec<_>>().join(", ")
            },
        })
    }
}

impl File {
    /// Whether names are names of files, and what is excluded is there.
    fn known(&self, plan: &Plan) -> Result<(), String> {
        let fine = |c: char| c.is_ascii_alphanumeric() || "-_.+,".contains(c);
        let names = plan
            .models
            .iter()
            .chain(&plan.targets)
            .chain(&plan.precisions);
        for name in names {
            if name.is_empty() || name.starts_with('.') || !name.chars().all(fine) {
                return Err(format!(
                    "\"{name}\" is part of the names of files: use letters, digits, '-', '_' and '.'"
                ));
            }
        }
        for excluded in &self.exclude {
            let given = [
                (&excluded.model, &plan.models),
                (&excluded.target, &plan.targets),
                (&excluded.precision, &plan.precisions),
            ];
            for (name, known) in given {
                if let Some(name) = name.as_ref().filter(|n| !known.contains(n)) {
                    return Err(format!(
                        "exclude: there is no {name}; there are: {}",
                        known.join(", ")
                    ));
                }
            }
        }
        Ok(())
    }
}

impl Excluded {
    fn fits(&self, model: &str, target: &str, precision: &str) -> bool {
        let is = |wanted: &Option<String>, name: &str| wanted.as_ref().is_none_or(|w| w == name);
        is(&self.model, model) && is(&self.target, target) && is(&self.precision, precision)
    }
}

/// What a precision's name says.
fn formats(name: &str) -> Result<(Option<Floats>, Option<Linear>), String> {
    let (mut floats, mut linear) = (None, None);
    for part in name.split('+') {
        match part {
            "fp32" => floats = Some(Floats::Fp32),
            "fp16" => floats = Some(Floats::Fp16),
            "bf16" => floats = Some(Floats::Bf16),
            "int8" => linear = Some(Linear::Int8),
            "int8-dynamic" => linear = Some(Linear::Int8Dynamic),
            "fp8" => linear = Some(Linear::Fp8),
            "int4" => linear = Some(Linear::Int4),
            _ => {
                return Err(format!(
                    "there is no precision {name}; there are fp32, fp16, bf16, int8, int8-dynamic, fp8 and int4, and int8+fp16"
                ));
            }
        }
    }
    Ok((floats, linear))
}

fn model_bytes(path: &Path) -> u64 {
    let length = |p: &Path| fs::metadata(p).map_or(0, |m| m.len());
    let mut data = path.as_os_str().to_owned();
    data.push(".data");
    length(path) + length(Path::new(&data))
}
