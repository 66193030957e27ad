//! The few messages of the Container Runtime Interface that are sent and read here, v1 as published with Kubernetes
//! (`runtime.v1`, k8s.io/cri-api/pkg/apis/runtime/v1/api.proto): which sandboxes there are, and of which pods.

use std::collections::HashMap;
use std::sync::Arc;

use crate::config::selector::Labels;
use crate::grpc::wire::{Fields, WireError, put};
use crate::workload::pod::{Facts, short_annotations};

/// `RuntimeService.ListPodSandbox`.
pub(super) const LIST: &str = "http://localhost/runtime.v1.RuntimeService/ListPodSandbox";
/// `RuntimeService.Version`.
pub(super) const VERSION: &str = "http://localhost/runtime.v1.RuntimeService/Version";

/// More sandboxes than that are no node's.
const MAX_SANDBOXES: usize = 16 * 1024;

/// The label by which the kubelet, and whoever speaks to a runtime in its place, says which pod a sandbox is of.
const UID: &str = "io.kubernetes.pod.uid";
/// What the kubelet adds to a pod's own labels.
const ADDED: [&str; 3] = ["io.kubernetes.pod.name", "io.kubernetes.pod.namespace", UID];

/// `ListPodSandboxRequest`: those of one pod, or all. `filter` is field 1; in `PodSandboxFilter` the `label_selector`, a map, is
/// field 3.
pub(super) fn list(uid: Option<&str>) -> Vec<u8> {
    let Some(uid) = uid else { return Vec::new() };
    let (mut entry, mut filter, mut request) = (Vec::new(), Vec::new(), Vec::new());
    put(&mut entry, 1, UID.as_bytes());
    put(&mut entry, 2, uid.as_bytes());
    put(&mut filter, 3, &entry);
    put(&mut request, 1, &filter);
    request
}

/// `PodSandbox`, as far as it is read.
#[derive(Default)]
struct Sandbox {
    /// Field 2, `metadata`: `name` is its field 1, `uid` 2, `namespace` 3.
    metadata: [Arc<str>; 3],
    /// Field 3, `state`: 0 is ready, 1 is not.
    state: u64,
    /// Field 4, `created_at`, in nanoseconds since 1970.
    created_at: u64,
    /// Field 5.
    labels: Labels,
    /// Field 6.
    annotations: Labels,
}

/// Reads a `ListPodSandboxResponse`, whose field 1 are the sandboxes: what is known of their pods. Where a pod has had several, the one
/// that is ready speaks for it, and of those the newest.
pub(super) fn pods(bytes: &[u8]) -> Result<Vec<Facts>, WireError> {
    let mut pods: HashMap<Arc<str>, Sandbox> = HashMap::new();
    let mut fields = Fields(bytes);
    let mut count = 0;
    while let Some((number, value)) = fields.next()? {
        if number != 1 {
            continue;
        }
        count += 1;
        if count > MAX_SANDBOXES {
            return Err(WireError::TooMany(MAX_SANDBOXES));
        }
        let sandbox = Sandbox::read(value.bytes(number)?)?;
        if sandbox.metadata.iter().any(|part| part.is_empty()) {
            continue;
        }
        let rank = |one: &Sandbox| (one.state == 0, one.created_at);
        let known = pods.get(&sandbox.metadata[1]);
        if known.is_none_or(|known| rank(known) < rank(&sandbox)) {
            pods.insert(Arc::clone(&sandbox.metadata[1]), sandbox);
        }
    }
    Ok(pods.into_values().map(Sandbox::facts).collect())
}

impl Sandbox {
    fn read(bytes: &[u8]) -> Result<Self, WireError> {
        let mut sandbox = Self::default();
        let mut fields = Fields(bytes);
        while let Some((number, value)) = fields.next()? {
            match number {
                2 => {
                    let mut fields = Fields(value.bytes(number)?);
                    while let Some((number @ 1..=4, value)) = fields.next()? {
                        if let Some(part) = sandbox.metadata.get_mut(number as usize - 1) {
                            *part = value.text(number)?.into();
                        }
                    }
                }
                3 => sandbox.state = value.number(number)?,
                4 => sandbox.created_at = value.number(number)?,
                5 => sandbox.labels.extend([entry(value.bytes(number)?)?]),
                6 => sandbox.annotations.extend([entry(value.bytes(number)?)?]),
                _ => {}
            }
        }
        Ok(sandbox)
    }

    fn facts(mut self) -> Facts {
        self.labels.retain(|name, _| !ADDED.contains(&name.as_str()));
        let [name, uid, namespace] = &self.metadata;
        Facts {
            labels: Some(Arc::new(self.labels)),
            annotations: Some(short_annotations(self.annotations)),
            ..Facts::named(uid, namespace, name)
        }
    }
}

/// What answers: a `VersionResponse` has the runtime's name in field 2 and its version in field 3.
pub(super) fn runtime(bytes: &[u8]) -> Result<String, WireError> {
    let (mut name, mut version) = ("", "");
    let mut fields = Fields(bytes);
    while let Some((number, value)) = fields.next()? {
        match number {
            2 => name = value.text(number)?,
            3 => version = value.text(number)?,
            _ => {}
        }
    }
    if name.is_empty() { Err(WireError::Missing("runtime_name")) } else { Ok(format!("{name} {version}")) }
}

/// An entry of a `map<string, string>`.
fn entry(bytes: &[u8]) -> Result<(String, String), WireError> {
    let (mut key, mut content) = ("", "");
    let mut fields = Fields(bytes);
    while let Some((number, value)) = fields.next()? {
        match number {
            1 => key = value.text(number)?,
            2 => content = value.text(number)?,
            _ => {}
        }
    }
    Ok((key.to_owned(), content.to_owned()))
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    /// The messages as another implementation of the encoding has them.
    mod proto {
        use std::collections::HashMap;

        #[derive(Clone, PartialEq, prost::Message)]
        pub(super) struct Request {
            #[prost(message, optional, tag = "1")]
            pub(super) filter: Option<Filter>,
        }

        #[derive(Clone, PartialEq, prost::Message)]
        pub(super) struct Filter {
            #[prost(map = "string, string", tag = "3")]
            pub(super) label_selector: HashMap<String, String>,
        }

        #[derive(Clone, PartialEq, prost::Message)]
        pub(super) struct Response {
            #[prost(message, repeated, tag = "1")]
            pub(super) items: Vec<Sandbox>,
        }

        #[derive(Clone, PartialEq, prost::Message)]
        pub(super) struct Sandbox {
            #[prost(string, tag = "1")]
            pub(super) id: String,
            #[prost(message, optional, tag = "2")]
            pub(super) metadata: Option<Metadata>,
            #[prost(int32, tag = "3")]
            pub(super) state: i32,
            #[prost(int64, tag = "4")]
            pub(super) created_at: i64,
            #[prost(map = "string, string", tag = "5")]
            pub(super) labels: HashMap<String, String>,
            #[prost(map = "string, string", tag = "6")]
            pub(super) annotations: HashMap<String, String>,
            #[prost(string, tag = "7")]
            pub(super) runtime_handler: String,
        }

        #[derive(Clone, PartialEq, prost::Message)]
        pub(super) struct Metadata {
            #[prost(string, tag = "1")]
            pub(super) name: String,
            #[prost(string, tag = "2")]
            pub(super) uid: String,
            #[prost(string, tag = "3")]
            pub(super) namespace: String,
            #[prost(uint32, tag = "4")]
            pub(super) attempt: u32,
        }
    }

    fn sandbox(uid: &str, name: &str, state: i32, created_at: i64) -> proto::Sandbox {
        let text = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        proto::Sandbox {
            id: "0123".into(),
            metadata: Some(proto::Metadata {
                name: name.into(),
                uid: uid.into(),
                namespace: "ns".into(),
                attempt: 7,
            }),
            state,
            created_at,
            labels: text(&[(UID, uid), (ADDED[0], name), (ADDED[1], "ns"), ("app", name)]),
            annotations: text(&[("short", "x"), ("long", &"x".repeat(2000))]),
            runtime_handler: "runc".into(),
        }
    }

    #[test]
    fn the_question_is_what_the_published_messages_say() {
        assert_eq!(list(None), proto::Request { filter: None }.encode_to_vec());
        let label_selector = [(UID.to_owned(), "a-b".to_owned())].into_iter().collect();
        let asked = proto::Request { filter: Some(proto::Filter { label_selector }) };
        assert_eq!(list(Some("a-b")), asked.encode_to_vec());
    }

    #[test]
    fn sandboxes_are_read_and_the_one_that_is_ready_and_newest_speaks_for_its_pod() {
        let items = vec![
            sandbox("a", "newer", 0, 20),
            sandbox("a", "newest-but-ended", 1, 30),
            sandbox("a", "older", 0, 10),
            sandbox("b", "ended", 1, 10),
            sandbox("", "of-no-pod", 0, 10),
            proto::Sandbox { metadata: None, ..sandbox("c", "nameless", 0, 10) },
        ];
        let mut read = pods(&proto::Response { items }.encode_to_vec()).unwrap();
        read.sort_by(|a, b| a.uid.cmp(&b.uid));
        let shown: Vec<_> = read.iter().map(|pod| (&*pod.uid, &*pod.namespace, &*pod.name)).collect();
        assert_eq!(shown, [("a", "ns", "newer"), ("b", "ns", "ended")]);
        let labels: Vec<_> = read[0].labels.as_ref().unwrap().iter().collect();
        assert_eq!(labels, [(&"app".to_owned(), &"newer".to_owned())], "the pod's own");
        let annotations: Vec<_> = read[0].annotations.as_ref().unwrap().keys().collect();
        assert_eq!(annotations, ["short"], "those that are short");
        assert_eq!((&read[0].account, &read[0].owner), (&None, &None));
    }

    proptest::proptest! {
        #[test]
        fn no_answer_makes_it_panic(bytes in proptest::collection::vec(0_u8.., 0..200), at in 0..100_usize, byte: u8) {
            let _ = (pods(&bytes), runtime(&bytes));
            // Nor one that is nearly right.
            let mut whole = proto::Response { items: vec![sandbox("a", "a", 0, 1)] }.encode_to_vec();
            whole[at] = byte;
            for pod in pods(&whole).unwrap_or_default() {
                proptest::prop_assert!(![&pod.uid, &pod.namespace, &pod.name].iter().any(|part| part.is_empty()));
            }
        }
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        let whole = proto::Response { items: vec![sandbox("a", "a", 0, 1)] }.encode_to_vec();
        for cut in 1..whole.len() {
            assert!(pods(&whole[..cut]).is_err(), "cut at {cut}");
        }
        assert!(pods(&[0x08, 1]).is_err());
        assert_eq!(runtime(&[]), Err(WireError::Missing("runtime_name")));
        let mut version = Vec::new();
        put(&mut version, 2, b"containerd");
        put(&mut version, 3, b"v1.7.0");
        assert_eq!(runtime(&version).unwrap(), "containerd v1.7.0");
    }
}
