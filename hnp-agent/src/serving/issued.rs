//! Certificates that are made for the names pods ask for, where an issuer stands among what a route shows.
//!
//! Only for the route's own names: a pod could have any made otherwise, and each is kept. Whoever asks for no name has
//! dialled an address. They live as short as what workloads get, and are made again in the handshake that finds one
//! too old: well before its end, in a fraction of what a handshake costs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::sign::CertifiedKey;

use crate::certs::names::Name;
use crate::config::plan::{Host, Route, Target};
use crate::identity::issuer::Issuer;

/// What a route is called by pods.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Names {
    /// In lower case.
    dns: Vec<Arc<str>>,
    addresses: Vec<std::net::IpAddr>,
}

/// What was made by one generation of an intermediate, for one route.
#[derive(Debug)]
pub(super) struct Issued {
    issuer: Arc<Issuer>,
    names: Names,
    /// By name; the one without is for those who ask for none.
    made: Mutex<HashMap<Option<Arc<str>>, Made>>,
}

#[derive(Debug)]
enum Made {
    Good {
        key: Arc<CertifiedKey>,
        not_after: SystemTime,
        due: SystemTime,
    },
    /// It was said that it cannot be.
    Refused,
}

impl Names {
    /// Of a route: its destinations and its upstream, as far as they are names or single addresses.
    pub fn of(route: &Route) -> Self {
        let mut names = Self::default();
        for destination in &route.destinations {
            match &destination.target {
                Target::Name(name) => names.add(name),
                Target::Net(net) => names.addresses.extend(net.single()),
            }
        }
        if let Host::Name(name) = &route.upstream.host {
            names.add(name);
        }
        names.addresses.dedup();
        names
    }

    fn add(&mut self, name: &Arc<str>) {
        if !self.dns.contains(name) {
            self.dns.push(Arc::clone(name));
        }
    }

    /// What whoever asks for no name may have dialled.
    fn without_name(&self) -> Vec<Name> {
        self.addresses.iter().copied().map(Name::Ip).collect()
    }
}

impl Issued {
    pub(super) fn new(issuer: Arc<Issuer>, names: Names) -> Self {
        Self { issuer, names, made: Mutex::default() }
    }

    /// The certificate for a name in lower case, or for none; `None` where it is not the route's.
    pub(super) fn certificate(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let (key, names) = match name {
            Some(name) => {
                let name = self.names.dns.iter().find(|known| ***known == *name)?;
                (Some(Arc::clone(name)), vec![Name::Dns(name.to_string())])
            }
            None => (None, self.names.without_name()),
        };
        if names.is_empty() {
            return None;
        }
        let now = crate::clock::now();
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        match made.get(&key) {
            Some(Made::Good { key, due, .. }) if now < *due => return Some(Arc::clone(key)),
            Some(Made::Refused) => return None,
            Some(Made::Good { .. }) | None => {}
        }
        match self.issuer.server(&names, now) {
            Ok((minted, due)) => {
                let (certified, not_after) = (minted.certified_key, minted.leaf.not_after);
                made.insert(key, Made::Good { key: Arc::clone(&certified), not_after, due });
                Some(certified)
            }
            Err(error) => {
                let name = key.as_deref().unwrap_or("the route's addresses");
                tracing::error!(name, %error, "no certificate can be shown to pods");
                match made.get(&key) {
                    // What is there serves to its end.
                    Some(Made::Good { key, not_after, .. }) if now < *not_after => Some(Arc::clone(key)),
                    Some(_) => None,
                    None => {
                        made.insert(key, Made::Refused);
                        None
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Duration;

    use tempfile::TempDir;

    use super::*;
    use crate::certs::key::KeyType;
    use crate::certs::names::permit_dns;
    use crate::certs::store::{self, Existing};
    use crate::certs::when::{CA, Until};
    use crate::certs::{Authority, Purpose, Request, init_ca};
    use crate::config::plan::{Identity, IdentityFiles, IdentityPlace, IdentitySource, Issuer as Plan};
    use crate::identity::Source;
    use crate::serving::certificate::served_names;
    use crate::telemetry::readiness::Readiness;
    use crate::workload::Directory;
    use crate::x509;

    /// An intermediate that may issue for what is below `prod.test`, and for no address.
    fn issuer(dir: &TempDir) -> Arc<Issuer> {
        let path = |name: &str| dir.path().join(name);
        let (until, now) = (Until::For(CA), crate::clock::now());
        let root = init_ca(None, KeyType::P256, until, now).unwrap();
        store::write(&root.files(&path("ca.crt"), &path("ca.key")), Existing::Replace).unwrap();
        let purpose = Purpose::Intermediate { permitted: vec![permit_dns("prod.test").unwrap()] };
        let request = Request { subject: None, purpose, key: KeyType::P256, until };
        let node = Authority::load(&path("ca.crt"), &path("ca.key"), None, now)
            .unwrap()
            .issue(&request, now)
            .unwrap();
        let place = IdentityPlace::Pair { certificate: path("node.crt"), key: path("node.key") };
        store::write(&node.files(&path("node.crt"), &path("node.key")), Existing::Replace).unwrap();
        let mode = std::fs::metadata(path("node.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0);
        let plan = Plan {
            intermediate: IdentityFiles { place, passphrase_file: None },
            trust_domain: "prod.test".into(),
            lifetime: Duration::from_secs(3600),
            pod_uid: false,
            max_identities: 1,
        };
        let identity = Identity { name: "node".into(), source: IdentitySource::Issuer(plan) };
        let source = Source::open(&identity, None, &Readiness::new(), &Directory::default());
        let snapshot = source.published().shared.load_full().expect("it loads");
        Arc::clone(snapshot.issuer().expect("it issues"))
    }

    fn names() -> Names {
        let route = crate::config::parse(
            "identities: {c: {certificate: /c, key: /k}}\n\
             routes: [{name: m, destinations: ['m.prod.test:80', 'other.test:80', '198.18.0.9:80', '198.18.0.9:81', \
             '10.0.0.0/8:80'], upstream: 'https://up.prod.test', identity: c}]",
            std::path::Path::new("x"),
        );
        Names::of(&route.unwrap().routes[0])
    }

    #[test]
    fn a_name_of_the_route_gets_a_certificate_and_no_other_one_does() {
        let dir = tempfile::tempdir().unwrap();
        let issuer = issuer(&dir);
        let issued = Issued::new(Arc::clone(&issuer), names());
        for name in ["m.prod.test", "up.prod.test"] {
            let shown = issued.certificate(Some(name)).expect(name);
            let patterns = served_names(&shown.cert[0]);
            assert!(patterns.len() == 1 && patterns[0].matches(name), "{patterns:?}");
            let leaf = x509::parse(&shown.cert[0]).unwrap();
            let usage = leaf.extended_key_usage().unwrap().unwrap().value;
            assert!(usage.server_auth && !usage.client_auth);
            assert_eq!(shown.cert.len(), 2, "the intermediate stands above it");
            // The second one is the first.
            assert!(Arc::ptr_eq(&shown, &issued.certificate(Some(name)).unwrap()));
        }
        assert_eq!((issuer.stats().minted(), issuer.stats().failures()), (2, 0));
        // Within the constraints, and not the route's: nobody has certificates made by asking for them.
        assert!(issued.certificate(Some("x.prod.test")).is_none());
        assert_eq!((issuer.stats().minted(), issuer.stats().failures()), (2, 0));
        // The route's, and outside of the constraints: tried once.
        for _ in 0..2 {
            assert!(issued.certificate(Some("other.test")).is_none());
        }
        assert_eq!((issuer.stats().minted(), issuer.stats().failures()), (2, 1));
    }

    #[test]
    fn who_asks_for_no_name_gets_one_for_the_addresses() {
        let dir = tempfile::tempdir().unwrap();
        let issued = Issued::new(issuer(&dir), names());
        let shown = issued.certificate(None).expect("constraints on names say nothing of addresses");
        let leaf = x509::parse(&shown.cert[0]).unwrap();
        let addresses: Vec<_> = x509::alternative_names(&leaf).collect();
        let wanted = x509_parser::prelude::GeneralName::IPAddress(&[198, 18, 0, 9]);
        assert_eq!(addresses, [&wanted]);
        assert!(Issued::new(Arc::clone(&issued.issuer), Names::default()).certificate(None).is_none());
    }

    #[test]
    fn one_that_is_due_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let issued = Issued::new(issuer(&dir), names());
        let first = issued.certificate(Some("m.prod.test")).unwrap();
        for made in issued.made.lock().unwrap().values_mut() {
            if let Made::Good { due, .. } = made {
                *due = crate::clock::now();
            }
        }
        let second = issued.certificate(Some("m.prod.test")).unwrap();
        assert!(!Arc::ptr_eq(&first, &second));
        assert!(Arc::ptr_eq(&second, &issued.certificate(Some("m.prod.test")).unwrap()));
    }
}
