//! `cargo xtask chart`: is what a cluster would be given sound, in every form?
//!
//! The chart is rendered with the values files in its `ci/` folder, for Kubernetes 1.28 to the newest version whose
//! schemas there are, and each rendering is held against Helm's lint, the schemas, rules of our own, and the agent's own
//! `check` of the configuration in it. Controls that must fail show that each of these looks at all. The plain
//! manifests are one of the renderings, and the units are verified by systemd.

mod config;
mod controls;
mod pod;
mod promises;
mod render;
mod rules;
mod units;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use self::render::{Case, NAMESPACE, Rendered, Renderer};
use crate::shell::{note, step};
use crate::toolchain::Workspace;

/// The oldest Kubernetes that the chart is for (Chart.yaml says so, too), and the first one with a field for AppArmor.
const OLDEST: &str = "1.28";
const APP_ARMOR_FIELD: &str = "1.30";
/// The values file of which the plain manifests are made.
const PLAIN: &str = "plain";

/// Lint, render and validate the Helm chart; render the plain manifests; verify the systemd units
///
/// Needs python3 with venv, and what it installs from the Python package index into target/tools.
#[derive(Args)]
pub(crate) struct Options {
    /// Write nothing: fail where the plain manifests are not what the chart renders.
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let workspace = Workspace::find()?;
    let scratch = scratch(&workspace)?;
    let renderer = Renderer::ensure(&workspace)?;

    step("rendering the chart");
    let cases = cases(&workspace, &scratch)?;
    let newer = &cases.last().context("there is no values file")?.chart;
    let rendered = renderer.render(&cases)?;
    let mut mistakes = Vec::new();
    for (case, rendered) in cases.iter().zip(&rendered) {
        let found = judge(rendered);
        note(&format!(
            "{}: {} objects, schemas of {}{}",
            case.name,
            rendered.documents.len(),
            rendered.versions.join(" "),
            if found.is_empty() { "" } else { ": MISTAKES" }
        ));
        mistakes.extend(found.into_iter().map(|mistake| format!("{}: {mistake}", case.name)));
    }
    if !mistakes.is_empty() {
        bail!("the chart is not sound:\n  {}", mistakes.join("\n  "));
    }

    promises::keep(&cases, &rendered)?;

    step("the agent's own check of each configuration");
    config::check(&workspace, &scratch, &cases, &rendered)?;
    step("controls that must fail");
    controls::run(&renderer, newer, &scratch)?;
    step("plain manifests");
    plain(&workspace, &cases, &rendered, options.check)?;
    step("systemd units");
    units::verify(&workspace)?;
    step("the chart is sound");
    Ok(())
}

/// Renders the chart with every values file of its `ci/`, without judging; returns the folder that holds each rendering as
/// `NAME-VERSION.yaml`: what the node tier starts.
///
/// # Errors
/// When there is no renderer, or a rendering fails.
pub(crate) fn renderings(workspace: &Workspace) -> Result<PathBuf> {
    // Newer than any schema: none is asked.
    const NO_SCHEMA: &str = "9.99";
    let scratch = scratch(workspace)?;
    let renderer = Renderer::ensure(workspace)?;
    step("rendering the chart for its pods");
    let cases = cases(workspace, &scratch)?;
    let unjudged: Vec<_> =
        cases.iter().map(|case| Case { first: NO_SCHEMA, before: None, ..case.clone() }).collect();
    let folder = scratch.join("rendered");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for (case, rendered) in cases.iter().zip(renderer.render(&unjudged)?) {
        if let Some(error) = rendered.error {
            bail!("{}: {error}", case.name);
        }
        let objects: String =
            rendered.documents.iter().map(|(_, object)| format!("---\n{object}\n")).collect();
        let file = folder.join(format!("{}-{}.yaml", case.stem, case.first));
        fs::write(&file, objects).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(folder)
}

fn scratch(workspace: &Workspace) -> Result<PathBuf> {
    let scratch = workspace.target.join("chart");
    fs::create_dir_all(&scratch).with_context(|| format!("cannot make {}", scratch.display()))?;
    Ok(scratch)
}

/// Each values file as of the oldest Kubernetes, and as of the first one with a field for AppArmor.
fn cases(workspace: &Workspace, scratch: &Path) -> Result<Vec<Case>> {
    let chart = workspace.root.join("deploy/helm/hnp");
    let older = render::as_of(&chart, OLDEST, scratch)?;
    let newer = render::as_of(&chart, APP_ARMOR_FIELD, scratch)?;
    let mut cases = Vec::new();
    for values in values_files(&chart)? {
        let stem = values.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        // The name by which users of the vendor's chart install it.
        let release = if stem.starts_with("vendor") { "chaos-agent-proxy" } else { "hnp" };
        let of = |chart: &PathBuf, first, before| Case {
            name: format!("{stem}, from Kubernetes {first}"),
            stem: stem.clone(),
            chart: chart.clone(),
            release,
            values: Some(values.clone()),
            first,
            before,
        };
        cases.push(of(&older, OLDEST, Some(APP_ARMOR_FIELD)));
        cases.push(of(&newer, APP_ARMOR_FIELD, None));
    }
    Ok(cases)
}

fn values_files(chart: &Path) -> Result<Vec<PathBuf>> {
    let folder = chart.join("ci");
    let mut files = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
        files.push(entry?.path());
    }
    files.sort();
    Ok(files)
}

/// All that is wrong with a rendering.
fn judge(rendered: &Rendered) -> Vec<String> {
    let mut found: Vec<String> = rendered.error.iter().cloned().collect();
    found.extend(rendered.lint.iter().map(|said| format!("lint: {said}")));
    found.extend(rendered.faults.iter().cloned());
    if rendered.error.is_none() && rendered.versions.is_empty() {
        found.push("no schema was asked".into());
    }
    found.extend(rules::mistakes(&rendered.documents));
    found
}

/// What is applied without Helm: one rendering, in the order in which its parts need each other.
fn plain(workspace: &Workspace, cases: &[Case], rendered: &[Rendered], check: bool) -> Result<()> {
    const ORDER: [&str; 5] = ["serviceaccount", "rbac", "configmap", "service", "daemonset"];
    let path = workspace.root.join("deploy/manifests/hnp.yaml");
    let found = cases.iter().zip(rendered).rfind(|(case, _)| case.stem == PLAIN);
    let (_, rendered) = found.context("there is no values file for the plain manifests")?;
    let mut text = format!(
        "# Made by `cargo xtask chart` of deploy/helm/hnp, with its ci/{PLAIN}.yaml, for Kubernetes {APP_ARMOR_FIELD} and later. Before it is\n\
         # applied:\n\
         #\n\
         #   kubectl create namespace {NAMESPACE}\n\
         #   kubectl label namespace {NAMESPACE} pod-security.kubernetes.io/enforce=privileged\n\
         #   kubectl -n {NAMESPACE} create secret generic hnp-client --from-file=client.crt --from-file=client.key\n\
         #\n\
         # and the manager's name, the image and, below Linux 5.11, SYS_RESOURCE are to be set. docs/install.md says the rest.\n"
    );
    for name in ORDER {
        let manifest =
            rendered.manifests.iter().find(|(template, _)| template.ends_with(&format!("/{name}.yaml")));
        let (_, manifest) = manifest.with_context(|| format!("no template {name}"))?;
        // Nobody manages what is applied by hand.
        let lines: Vec<&str> = manifest.lines().filter(|line| !line.contains("managed-by: Helm")).collect();
        let manifest = lines.join("\n");
        if !manifest.trim().is_empty() {
            text.push_str("---\n");
            text.push_str(manifest.trim());
            text.push('\n');
        }
    }
    if fs::read_to_string(&path).is_ok_and(|written| written == text) {
        note("deploy/manifests/hnp.yaml is what the chart renders");
        return Ok(());
    }
    if check {
        bail!("deploy/manifests/hnp.yaml is not what the chart renders; `cargo xtask chart` writes it");
    }
    fs::create_dir_all(path.parent().context("a folder")?)?;
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    note("deploy/manifests/hnp.yaml is new");
    Ok(())
}
