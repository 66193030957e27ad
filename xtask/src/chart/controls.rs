//! Values that must be refused, with their place: a check that takes everything would take these.

use std::fs;
use std::path::Path;

use anyhow::{Result, bail};

use super::judge;
use super::render::{Case, Renderer};
use crate::shell::note;

/// Values, and what the refusal must name.
const REFUSED: [(&str, &[&str]); 14] = [
    ("", &["serverAddress: is missing"]),
    ("serverAdress: https://m.example", &["additional properties 'serverAdress'"]),
    ("serverAddress: http://m.example", &["/serverAddress"]),
    ("serverAddress: https://m.example\ngateway: {prot: 7777}", &["/gateway", "'prot'"]),
    ("serverAddress: https://m.example\ngateway: {port: 70000}", &["/gateway/port", "65,535"]),
    ("serverAddress: https://m.example\nenforcement: strikt", &["/enforcement"]),
    (
        "serverAddress: https://m.example\noverrides: [{namespaces: [a], enforcment: strict}]",
        &["/overrides/0", "enforcment"],
    ),
    ("serverAddress: https://m.example\nclient: {mountPath: etc/mtls}", &["/client/mountPath"]),
    ("serverAddress: https://m.example\nruntimeSocket: containerd.sock", &["/runtimeSocket"]),
    ("serverAddress: https://m.example\nagent-proxy: {volumMounts: []}", &["/agent-proxy", "volumMounts"]),
    ("serverAddress: https://m.example\nconfig: {routes: []}", &["one or the other"]),
    (
        "serverAddress: https://m.example\npodMonitor: {enabled: true}",
        &["config.admin.listen is 127.0.0.1:15090"],
    ),
    (
        "serverAddress: https://m.example\nenv: [{name: CLIENT_CERT_PATH, value: /c}]",
        &["CLIENT_CERT_PATH and CLIENT_KEY_PATH one is missing"],
    ),
    // Neither schema nor template knows it: two volumes at one path.
    (
        "serverAddress: https://m.example\nvolumes: [{name: v, emptyDir: {}}]\nvolumeMounts: [{name: v, mountPath: /etc/mtls}]",
        &["/etc/mtls twice"],
    ),
];
/// What only the API's schemas refuse.
const NO_SCHEMA_FITS: (&str, &str) = (
    "serverAddress: https://m.example\ntolerations: [{operator: Exists, tolerationSecond: 5}]",
    "tolerationSecond",
);

/// Renders them all.
///
/// # Errors
/// When one is taken, or refused without its place.
pub(super) fn run(renderer: &Renderer, chart: &Path, scratch: &Path) -> Result<()> {
    let all: Vec<(&str, &[&str])> =
        REFUSED.into_iter().chain([(NO_SCHEMA_FITS.0, std::slice::from_ref(&NO_SCHEMA_FITS.1))]).collect();
    let mut cases = Vec::new();
    for (index, (values, _)) in all.iter().enumerate() {
        let path = scratch.join(format!("refused-{index}.yaml"));
        fs::write(&path, values)?;
        cases.push(Case {
            name: format!("control {index}"),
            stem: format!("refused-{index}"),
            chart: chart.to_owned(),
            release: "hnp",
            values: Some(path),
            first: super::APP_ARMOR_FIELD,
            before: None,
        });
    }
    for (rendered, (values, expected)) in renderer.render(&cases)?.iter().zip(&all) {
        let found = judge(rendered).join("\n");
        if let Some(missing) = expected.iter().find(|words| !found.contains(**words)) {
            bail!("these values must be refused, naming {missing:?}:\n{values}\nand this was said:\n{found}");
        }
    }
    note(&format!("{} values files are refused, each with its place", all.len()));
    Ok(())
}
