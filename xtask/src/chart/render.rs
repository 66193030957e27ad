//! Helm and the API's schemas, from two packages of Python's index below the target directory.
//!
//! No Helm is in any Debian, and its library for Python is Helm itself.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::shell::{self, note, step};
use crate::toolchain::Workspace;

/// Pinned, so that the same tree gives the same answer.
const PACKAGES: [&str; 2] = ["helm-python-sdk==0.2.2", "kubernetes-validate==1.37.0"];
const SCRIPT: &str = include_str!("render.py");

/// A Python that has them.
pub(super) struct Renderer {
    python: PathBuf,
}

/// What is to be rendered, and for which versions of Kubernetes (`first`, and below `before`).
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) name: String,
    /// The values file's, without its extension.
    pub(super) stem: String,
    pub(super) chart: PathBuf,
    pub(super) release: &'static str,
    pub(super) values: Option<PathBuf>,
    pub(super) first: &'static str,
    pub(super) before: Option<&'static str>,
}

/// What became of it.
#[derive(Debug)]
pub(super) struct Rendered {
    /// Why there is nothing else: in Helm's words.
    pub(super) error: Option<String>,
    /// What `helm lint --strict` holds against it.
    pub(super) lint: Vec<String>,
    /// Text by template.
    pub(super) manifests: BTreeMap<String, String>,
    /// Objects with the template they come from.
    pub(super) documents: Vec<(String, Value)>,
    /// What a schema refuses.
    pub(super) faults: Vec<String>,
    /// The versions whose schemas were asked.
    pub(super) versions: Vec<String>,
}

/// The namespace of every release here.
pub(super) const NAMESPACE: &str = "hnp";

impl Renderer {
    /// Installs what is missing.
    ///
    /// # Errors
    /// When there is no Python with venv, or its index does not give the packages.
    pub(super) fn ensure(workspace: &Workspace) -> Result<Self> {
        let home = workspace.tools().join("chart");
        let (python, done) = (home.join("bin/python"), home.join("installed"));
        let wanted = PACKAGES.join("\n");
        if fs::read_to_string(&done).is_ok_and(|installed| installed == wanted) {
            return Ok(Self { python });
        }
        step(&format!("installing {}", PACKAGES.join(" and ")));
        shell::run(Command::new("python3").args(["-m", "venv"]).arg(&home))
            .context("a Python with venv is needed; on Debian: apt-get install python3-venv")?;
        let mut pip = Command::new(&python);
        shell::run(
            pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(PACKAGES),
        )?;
        fs::write(&done, wanted).with_context(|| format!("cannot write {}", done.display()))?;
        Ok(Self { python })
    }

    /// Renders all of them in one process.
    ///
    /// # Errors
    /// When the process fails; what is wrong with a chart is in what it returns.
    pub(super) fn render(&self, cases: &[Case]) -> Result<Vec<Rendered>> {
        let asked: Vec<Value> = cases
            .iter()
            .map(|case| {
                json!({
                    "chart": case.chart, "release": case.release, "namespace": NAMESPACE, "values": case.values,
                    "first": case.first, "before": case.before,
                })
            })
            .collect();
        let mut command = Command::new(&self.python);
        command.args(["-c", SCRIPT]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {}", self.python.display()))?;
        let mut stdin = child.stdin.take().context("stdin was piped")?;
        stdin.write_all(Value::from(asked).to_string().as_bytes()).context("the renderer does not read")?;
        drop(stdin);
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!(
                "the renderer failed ({})\n{}",
                output.status,
                String::from_utf8_lossy(&output.stderr).trim_end()
            );
        }
        let answers: Vec<Value> = serde_json::from_slice(&output.stdout).context("the renderer's answer")?;
        answers.iter().map(rendered).collect()
    }
}

fn rendered(answer: &Value) -> Result<Rendered> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (mut documents, mut faults) = (Vec::new(), Vec::new());
    for document in list(&answer["documents"]) {
        let template = text(&document["template"]);
        for fault in list(&document["faults"]) {
            // Kinds of operators are in no schema of Kubernetes'.
            let foreign = document["object"]["apiVersion"] == json!("monitoring.coreos.com/v1");
            if fault["no_schema"] == json!(true) && foreign {
                continue;
            }
            faults.push(format!(
                "{template}: {}: Kubernetes {}: {}",
                text(&fault["at"]),
                text(&fault["version"]),
                text(&fault["what"])
            ));
        }
        documents.push((template, document["object"].clone()));
    }
    Ok(Rendered {
        error: answer["error"].as_str().map(str::to_owned),
        lint: list(&answer["lint"])
            .iter()
            .map(|message| format!("{}: {}", text(&message["path"]), text(&message["error"])))
            .collect(),
        manifests: serde_json::from_value(answer["manifests"].clone()).context("manifests")?,
        documents,
        faults,
        versions: list(&answer["versions"]).iter().map(text).collect(),
    })
}

/// A copy of the chart that renders as for a cluster of this version: the library has no way to say so.
///
/// # Errors
/// When it cannot be written.
pub(super) fn as_of(chart: &Path, version: &str, into: &Path) -> Result<PathBuf> {
    const ASKED: &str = ".Capabilities.KubeVersion.Version";
    let copy = into.join(format!("chart-{version}"));
    if copy.exists() {
        fs::remove_dir_all(&copy)?;
    }
    fs::create_dir_all(copy.join("templates"))?;
    let mut replaced = 0;
    for folder in ["", "templates"] {
        for entry in fs::read_dir(chart.join(folder))? {
            let path = entry?.path();
            let Some(name) = path.file_name().filter(|_| path.is_file()) else { continue };
            let text = fs::read_to_string(&path)?;
            replaced += text.matches(ASKED).count();
            fs::write(copy.join(folder).join(name), text.replace(ASKED, &format!("\"v{version}.0\"")))?;
        }
    }
    if replaced == 0 {
        bail!("no template asks for {ASKED}: one rendering for all versions is enough, so remove this copy");
    }
    note(&format!("as of Kubernetes {version}: {}", copy.display()));
    Ok(copy)
}
