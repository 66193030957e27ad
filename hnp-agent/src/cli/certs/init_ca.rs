//! `hnp-agent certs init-ca`: the first command of a recipe.

use super::{Making, Written, shown};
use crate::certs::when::{self, Until};
use crate::certs::{CertsError, init_ca};

/// Arguments of `init-ca`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Valid for ten years unless --lifetime says otherwise. Examples:\n  \
    hnp-agent certs init-ca\n  \
    hnp-agent certs init-ca --subject \"/O=Example ORG/CN=CA Cert\" --key-type rsa2048 --lifetime 9999d")]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) making: Making,
    /// What the files are called: NAME.crt and NAME.key.
    #[arg(long, value_name = "NAME", default_value = "ca")]
    out_name: String,
}

pub(super) fn run(args: &Args) -> Result<Written, CertsError> {
    let making = &args.making;
    let until = making.end.until().unwrap_or(Until::For(when::CA));
    let make = || init_ca(making.subject.clone(), making.key_type, until, crate::clock::now());
    making.write(&args.out_name, make, |certificate, key| {
        let elsewhere = if (certificate, key) == ("ca.crt".as_ref(), "ca.key".as_ref()) {
            String::new()
        } else {
            format!(" --ca {} --ca-key {}", shown(certificate), shown(key))
        };
        format!(
            "give {} to whoever shall accept what it issues, keep {} to yourself, and: hnp-agent certs issue client{elsewhere}",
            shown(certificate),
            shown(key)
        )
    })
}
