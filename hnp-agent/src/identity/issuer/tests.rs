use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::UNIX_EPOCH;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CustomExtension, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer as RcgenIssuer, KeyPair, KeyUsagePurpose, date_time_ymd,
};
use tempfile::TempDir;

use super::*;
use crate::certs::names;
use crate::config::plan::{IdentityFiles, IdentityPlace};
use crate::identity::files::load::IdentityWarning;
use crate::workload::{Account, Facts, Teller};
use crate::x509;

/// Name constraints: OID 2.5.29.30.
const NAME_CONSTRAINTS: &[u64] = &[2, 5, 29, 30];
const POD: &str = "3ff17592-7a4d-4c3d-8a0c-1b6f0a4ad9c0";

/// A directory with a root and intermediates.
struct World {
    dir: TempDir,
    root: CertifiedIssuer<'static, KeyPair>,
}

fn write_key(path: &Path, pem: &str) {
    std::fs::write(path, pem).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// What an intermediate is like.
struct Intermediate {
    path_length: BasicConstraints,
    usages: Vec<KeyUsagePurpose>,
    uses: Vec<ExtendedKeyUsagePurpose>,
    /// A permitted (`0xa0`) or excluded (`0xa1`) URI host.
    uris: Option<(u8, &'static str)>,
    years: (i32, i32),
}

impl Default for Intermediate {
    fn default() -> Self {
        Self {
            path_length: BasicConstraints::Constrained(0),
            usages: vec![KeyUsagePurpose::KeyCertSign],
            uses: Vec::new(),
            uris: None,
            years: (2020, 2090),
        }
    }
}

fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    [&[tag, u8::try_from(content.len()).unwrap()], content].concat()
}

impl World {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "root");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let root = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { dir: tempfile::tempdir().unwrap(), root }
    }

    /// Writes an intermediate with its chain.
    fn write(&self, intermediate: Intermediate) -> Plan {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "node-1");
        params.is_ca = IsCa::Ca(intermediate.path_length);
        params.key_usages = intermediate.usages;
        params.extended_key_usages = intermediate.uses;
        params.not_before = date_time_ymd(intermediate.years.0, 1, 1);
        params.not_after = date_time_ymd(intermediate.years.1, 1, 1);
        if let Some((which, host)) = intermediate.uris {
            let subtree = tlv(0x30, &tlv(0x86, host.as_bytes()));
            let content = tlv(0x30, &tlv(which, &subtree));
            let mut extension = CustomExtension::from_oid_content(NAME_CONSTRAINTS, content);
            extension.set_criticality(true);
            params.custom_extensions.push(extension);
        }
        let key = KeyPair::generate().unwrap();
        let issuer: &RcgenIssuer<'_, _> = &self.root;
        let own = params.signed_by(&key, issuer).unwrap();
        let path = |name: &str| self.dir.path().join(name);
        std::fs::write(path("ca.crt"), format!("{}{}", own.pem(), self.root.pem())).unwrap();
        write_key(&path("ca.key"), &key.serialize_pem());
        self.plan(&path("ca.crt"), &path("ca.key"))
    }

    fn plan(&self, certificate: &Path, key: &Path) -> Plan {
        let place = IdentityPlace::Pair { certificate: certificate.into(), key: key.into() };
        Plan {
            intermediate: IdentityFiles { place, passphrase_file: None },
            trust_domain: "prod.example".into(),
            lifetime: Duration::from_secs(3600),
            pod_uid: false,
            max_identities: 3,
        }
    }
}

fn now() -> SystemTime {
    crate::clock::now()
}

fn account(name: &str) -> Account {
    Account { namespace: "team-a".into(), name: name.into() }
}

fn issuer(plan: &Plan, directory: &Directory) -> Arc<Issuer> {
    let (_, mint) = mint::load(plan, now()).unwrap();
    let terms =
        Terms { name: "workloads".into(), generation: 1, pod_uid: plan.pod_uid, most: plan.max_identities };
    Issuer::new(terms, mint, directory.clone(), Arc::default())
}

fn known(directory: &Directory, pods: &[(&str, &str)]) {
    let facts = |(uid, name): &(&str, &str)| Facts {
        account: Some(Arc::new(account(name))),
        ..Facts::named(uid, "team-a", uid)
    };
    directory.tell_all(Teller::Api, pods.iter().map(facts));
}

/// What a pod would present now.
fn presented(issuer: &Issuer, pod: &str) -> Arc<IdentitySnapshot> {
    let slot = issuer.of_pod(pod).unwrap();
    issuer.present(&slot).unwrap().clone().unwrap()
}

#[test]
fn a_leaf_is_what_a_manager_expects_and_nothing_more() {
    let world = World::new();
    let (loaded, mint) = mint::load(&world.write(Intermediate::default()), now()).unwrap();
    assert_eq!(loaded.warnings, []);
    assert!(
        loaded.certified_key.key.choose_scheme(&[rustls::SignatureScheme::ECDSA_NISTP256_SHA256]).is_none()
    );
    let minted = mint.workload(&account("runner"), Some(POD), now()).unwrap();
    let [leaf, above] = &minted.certified_key.cert[..] else { panic!("{:?}", minted.certified_key.cert) };
    let (leaf, above) = (x509::parse(leaf).unwrap(), x509::parse(above).unwrap());
    assert_eq!(leaf.issuer().as_raw(), above.subject().as_raw());
    let names: Vec<_> = x509::alternative_names(&leaf).map(|name| format!("{name:?}")).collect();
    assert_eq!(names, [r#"URI("spiffe://prod.example/ns/team-a/sa/runner")"#]);
    assert_eq!(x509::distinguished_name(leaf.subject()), format!("UID={POD},O=hnp"));
    assert_eq!(minted.leaf.version, 3);
    assert!(!leaf.is_ca());
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && !usage.server_auth && !usage.any);
    let usage = leaf.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && !usage.key_cert_sign());
    let span = minted.leaf.not_after.duration_since(now()).unwrap();
    assert!(span <= Duration::from_secs(3600) && span > Duration::from_secs(3500), "{span:?}");
    assert!(minted.leaf.not_before < now());
    minted.certified_key.keys_match().unwrap();
    // Another name by a name that is none of Kubernetes'.
    for bad in ["", "a/sa/b", "ä", ".."] {
        assert!(mint.workload(&account(bad), None, now()).is_err(), "{bad}");
    }
    assert!(mint.workload(&account("a"), Some("x,O=y"), now()).is_err());
    // Of no one pod, the subject says nothing of one.
    let shared = mint.workload(&account("runner"), None, now()).unwrap();
    assert_eq!(shared.leaf.subject, "O=hnp");
    let server = mint.server(&[names::dns("git.prod.example").unwrap()], now()).unwrap();
    let server = x509::parse(&server.certified_key.cert[0]).unwrap();
    let usage = server.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && !usage.client_auth);
}

#[test]
fn nothing_outlives_its_intermediate() {
    let world = World::new();
    let (_, mint) = mint::load(&world.write(Intermediate::default()), now()).unwrap();
    let end = x509::moment(
        x509::parse(&mint.workload(&account("a"), None, now()).unwrap().certified_key.cert[1])
            .unwrap()
            .validity()
            .not_after,
    );
    let late = mint.workload(&account("a"), None, end - Duration::from_secs(60)).unwrap();
    assert_eq!(late.leaf.not_after, end);
    assert!(mint.workload(&account("a"), None, end + Duration::from_secs(1)).is_err());
}

#[test]
fn what_cannot_issue_for_the_domain_is_refused_and_what_is_risky_is_said() {
    let world = World::new();
    let refused = |intermediate: Intermediate, said: &str| {
        let error = mint::load(&world.write(intermediate), now()).unwrap_err().to_string();
        assert!(error.contains("ca.crt: cannot issue") && error.contains(said), "{said}: {error}");
    };
    let uris = |which, host| Intermediate { uris: Some((which, host)), ..Intermediate::default() };
    refused(Intermediate { usages: vec![], ..Intermediate::default() }, "keyCertSign");
    refused(Intermediate { usages: vec![KeyUsagePurpose::CrlSign], ..Intermediate::default() }, "keyUsage");
    let only = |uses| Intermediate { uses: vec![uses], ..Intermediate::default() };
    refused(only(ExtendedKeyUsagePurpose::ServerAuth), "leaves out clients");
    mint::load(&world.write(only(ExtendedKeyUsagePurpose::ClientAuth)), now()).unwrap();
    refused(Intermediate { years: (2001, 2002), ..Intermediate::default() }, "has expired");
    refused(Intermediate { years: (2089, 2090), ..Intermediate::default() }, "becomes valid only");
    refused(uris(0xa0, "test.example"), "name constraints of CN=node-1");
    refused(uris(0xa0, ".prod.example"), "name constraints");
    refused(uris(0xa1, "prod.example"), "name constraints");
    refused(uris(0xa1, ".example"), "prod.example");
    for good in [uris(0xa0, "prod.example"), uris(0xa0, ".example"), uris(0xa1, ".prod.example")] {
        mint::load(&world.write(good), now()).unwrap();
    }
    let warned =
        |intermediate: Intermediate| mint::load(&world.write(intermediate), now()).unwrap().0.warnings;
    for path_length in [BasicConstraints::Unconstrained, BasicConstraints::Constrained(1)] {
        let warnings = warned(Intermediate { path_length, ..Intermediate::default() });
        assert!(matches!(warnings[..], [IdentityWarning::PathLength { .. }]), "{warnings:?}");
    }
    let path = |name: &str| world.dir.path().join(name);
    std::fs::write(path("root.crt"), world.root.pem()).unwrap();
    write_key(&path("root.key"), &world.root.key().serialize_pem());
    let (root, _) = mint::load(&world.plan(&path("root.crt"), &path("root.key")), now()).unwrap();
    assert!(matches!(root.warnings[..], [IdentityWarning::RootIssues { .. }]), "{:?}", root.warnings);
    // A leaf is no CA, and another's key is none of it.
    let plan = world.write(Intermediate::default());
    write_key(&path("ca.key"), &KeyPair::generate().unwrap().serialize_pem());
    assert!(mint::load(&plan, now()).unwrap_err().to_string().contains("is not the key of any certificate"));
}

#[test]
fn pods_of_an_account_share_a_certificate_and_no_others() {
    let (world, directory) = (World::new(), Directory::default());
    let plan = world.write(Intermediate::default());
    let issuer_of = |pod_uid| issuer(&Plan { pod_uid, ..plan.clone() }, &directory);
    known(&directory, &[("pod-1", "a"), ("pod-2", "a"), ("pod-3", "b")]);
    let shared = issuer_of(false);
    assert!(matches!(shared.of_pod("pod-4"), Err(NotIssued::Unconfirmed(_))));
    let [one, two, three] = ["pod-1", "pod-2", "pod-3"].map(|pod| presented(&shared, pod));
    assert!(Arc::ptr_eq(&one, &two) && !Arc::ptr_eq(&one, &three));
    assert_eq!(&*three.of_workload().unwrap().spiffe_id, "spiffe://prod.example/ns/team-a/sa/b");
    assert_eq!((shared.stats().minted(), shared.cached()), (2, 2));
    let own = issuer_of(true);
    let [one, two] = ["pod-1", "pod-2"].map(|pod| presented(&own, pod));
    assert!(!Arc::ptr_eq(&one, &two));
    assert_eq!((&*one.leaf.subject, &*two.leaf.subject), ("O=hnp, uid=pod-1", "O=hnp, uid=pod-2"));
}

#[test]
fn certificates_are_renewed_while_they_are_used_and_go_with_the_last_pod() {
    let (world, directory) = (World::new(), Directory::default());
    known(&directory, &[("pod-1", "a"), ("pod-2", "a"), ("pod-3", "b")]);
    let issuer = issuer(&world.write(Intermediate::default()), &directory);
    let [first, other] = ["pod-1", "pod-3"].map(|pod| presented(&issuer, pod));
    let is_presented = |one: &IdentitySnapshot| one.of_workload().unwrap().is_presented_by(&issuer);
    assert!(issuer.look(now()).is_empty());
    // given two thirds of the lifetime over, and one of them in use
    let _ = presented(&issuer, "pod-2");
    let later = now() + Duration::from_secs(2700);
    let due = issuer.look(later);
    assert_eq!(due.len(), 1);
    issuer.renew(&due[0], later);
    issuer.renew(&due[0], later);
    let second = presented(&issuer, "pod-1");
    assert!(!Arc::ptr_eq(&first, &second) && second.leaf.not_after > first.leaf.not_after);
    assert_eq!((is_presented(&first), is_presented(&second), is_presented(&other)), (false, true, true));
    assert_eq!(issuer.stats().minted(), 3);
    // when the other is over, it is not kept
    issuer.look(now() + Duration::from_secs(3600));
    assert_eq!((is_presented(&other), issuer.cached()), (false, 1));
    // when one of two pods has gone, nothing changes; when the last has, its certificate goes
    known(&directory, &[("pod-2", "a")]);
    issuer.look(later);
    assert!(is_presented(&second));
    known(&directory, &[]);
    let slot = issuer.of_pod("pod-2");
    assert!(matches!(slot, Err(NotIssued::Unconfirmed(_))));
    issuer.look(later);
    assert!(!is_presented(&second) && issuer.cached() == 0);
}

#[test]
fn there_are_never_more_than_allowed_and_the_one_not_used_for_longest_goes() {
    let (world, directory) = (World::new(), Directory::default());
    known(&directory, &[("1", "a"), ("2", "b"), ("3", "c"), ("4", "d")]);
    let issuer = issuer(&world.write(Intermediate::default()), &directory);
    let oldest = presented(&issuer, "1");
    for pod in ["2", "3", "1"] {
        issuer.look(now());
        presented(&issuer, pod);
    }
    let second = presented(&issuer, "2");
    issuer.look(now());
    for pod in ["1", "3", "4"] {
        presented(&issuer, pod);
    }
    assert_eq!(issuer.cached(), 3);
    assert!(oldest.of_workload().unwrap().is_presented_by(&issuer));
    assert!(!second.of_workload().unwrap().is_presented_by(&issuer));
}

#[test]
fn what_was_given_up_is_presented_by_nobody() {
    let (world, directory) = (World::new(), Directory::default());
    known(&directory, &[("1", "a")]);
    let plan = world.write(Intermediate::default());
    let (former, next) = (issuer(&plan, &directory), issuer(&plan, &directory));
    let slot = former.of_pod("1").unwrap();
    let old = former.present(&slot).unwrap().clone().unwrap();
    next.follow(&former);
    former.end();
    assert!(slot.is_gone() && !old.of_workload().unwrap().is_presented_by(&former));
    assert!(former.present(&slot).unwrap().is_none(), "made and not kept");
    // The next has one before anybody asks.
    let due = next.look(now());
    assert_eq!(due.len(), 1);
    next.renew(&due[0], now());
    assert_eq!(next.cached(), 1);
    let new = presented(&next, "1");
    assert!(!Arc::ptr_eq(&old, &new) && new.of_workload().unwrap().is_presented_by(&next));
    assert!(new.leaf.not_after > UNIX_EPOCH && !new.of_workload().unwrap().is_presented_by(&former));
}

/// What a certificate costs; printed, not judged: `cargo test --release -p hnp-agent cost_of_issuing -- --nocapture`.
#[test]
fn the_cost_of_issuing_is_counted() {
    const MANY: usize = 200;
    let (world, directory) = (World::new(), Directory::default());
    let pods: Vec<String> = (0..MANY).map(|index| format!("pod-{index}")).collect();
    let all: Vec<_> = pods.iter().map(|pod| (&**pod, &**pod)).collect();
    known(&directory, &all);
    let plan = Plan { max_identities: MANY, ..world.write(Intermediate::default()) };
    let issuer = issuer(&plan, &directory);
    pods.iter().for_each(|pod| drop(presented(&issuer, pod)));
    let stats = issuer.stats();
    assert_eq!((stats.minted(), stats.failures()), (MANY as u64, 0));
    let each = stats.cost() / u32::try_from(MANY).unwrap();
    assert!(each > Duration::ZERO);
    println!("issuing costs {each:?} of CPU each, {MANY} of them");
}
