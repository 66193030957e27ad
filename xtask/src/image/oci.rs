//! Images as OCI archives: one layer, one configuration, one manifest, in a tar file that docker, podman, skopeo,
//! containerd and every registry's tools take.
//!
//! Written here, because it is less than what any tool for it would ask of a machine. After the OCI image
//! specification 1.1 (image-layout.md, manifest.md, config.md).

use std::collections::BTreeMap;
use std::io::Write as _;

use anyhow::Result;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::tar::Tar;

/// What an image is made of.
pub(super) struct Image<'a> {
    /// With a tag: `localhost/hnp-agent:0.1.0`.
    pub(super) name: &'a str,
    /// As Go calls it, which the specification does: `amd64`.
    pub(super) arch: &'a str,
    /// The layer.
    pub(super) layer: Vec<u8>,
    /// How hard the layer is pressed.
    pub(super) compression: Compression,
    /// What runs.
    pub(super) entrypoint: &'a [&'a str],
    /// As `USER` in a Containerfile.
    pub(super) user: &'a str,
    /// What the image says of itself: `org.opencontainers.image.*`.
    pub(super) labels: BTreeMap<&'a str, String>,
}

/// An image that was written.
pub(super) struct Written {
    /// The archive.
    pub(super) archive: Vec<u8>,
    /// The manifest's digest, by which a registry knows the image.
    pub(super) digest: String,
    /// Bytes of the layer as it is pulled.
    pub(super) compressed: usize,
    /// Bytes of the layer on a node.
    pub(super) unpacked: usize,
}

impl Image<'_> {
    /// Writes it.
    ///
    /// # Errors
    /// When a part is too large for the form.
    pub(super) fn write(&self) -> Result<Written> {
        // The header that this makes holds no time and no name.
        let mut gzip = GzEncoder::new(Vec::new(), self.compression);
        gzip.write_all(&self.layer)?;
        let compressed = gzip.finish()?;
        let config = json!({
            "architecture": self.arch,
            "os": "linux",
            "config": {"User": self.user, "Entrypoint": self.entrypoint, "WorkingDir": "/", "Labels": self.labels},
            "rootfs": {"type": "layers", "diff_ids": [digest(&self.layer)]},
        });
        let config = serde_json::to_vec(&config)?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &compressed)],
            "annotations": self.labels,
        });
        let manifest = serde_json::to_vec(&manifest)?;
        let mut described = descriptor(MANIFEST, &manifest);
        described["platform"] = json!({"architecture": self.arch, "os": "linux"});
        // The first key is containerd's, the second one everybody's; podman takes the whole name there.
        described["annotations"] =
            json!({"io.containerd.image.name": self.name, "org.opencontainers.image.ref.name": self.name});
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [described]});

        let mut archive = Tar::default();
        archive.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        archive.file("index.json", 0o644, &serde_json::to_vec(&index)?)?;
        archive.dir("blobs", 0o755)?;
        archive.dir("blobs/sha256", 0o755)?;
        for blob in [&manifest, &config, &compressed] {
            archive.file(&format!("blobs/sha256/{}", hex(blob)), 0o644, blob)?;
        }
        Ok(Written {
            archive: archive.finish(),
            digest: digest(&manifest),
            compressed: compressed.len(),
            unpacked: self.layer.len(),
        })
    }
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn descriptor(kind: &str, blob: &[u8]) -> Value {
    json!({"mediaType": kind, "digest": digest(blob), "size": blob.len()})
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(bytes))
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(layer: &[u8]) -> Image<'static> {
        Image {
            name: "localhost/x:1",
            arch: "amd64",
            layer: layer.to_vec(),
            compression: Compression::best(),
            entrypoint: &["/x"],
            user: "0:0",
            labels: BTreeMap::from([("org.opencontainers.image.title", "x".to_owned())]),
        }
    }

    #[test]
    fn the_same_content_is_the_same_image_and_another_is_not() {
        let [one, again, other] = [b"one", b"one", b"two"].map(|layer| image(layer).write().expect("small"));
        assert_eq!((&one.archive, &one.digest), (&again.archive, &again.digest));
        assert_ne!(one.digest, other.digest);
    }

    #[test]
    fn every_digest_names_a_blob_that_is_there() {
        let written = image(b"layer").write().expect("small");
        let text = String::from_utf8_lossy(&written.archive);
        let (mut named, mut rest) = (0, &text[..]);
        while let Some(at) = rest.find("\"digest\":\"sha256:") {
            rest = &rest[at + 17..];
            assert!(text.contains(&format!("blobs/sha256/{}", &rest[..64])), "{}", &rest[..64]);
            named += 1;
        }
        assert_eq!(named, 3, "a manifest, a configuration, a layer");
    }
}
