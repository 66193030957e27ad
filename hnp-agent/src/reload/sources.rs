//! The identities and trusts that the configuration in force names: opened, watched, and let go.
//!
//! What two generations have in common goes on as it is, with its snapshot: connections that speak for
//! it stay warm. What changed its definition counts on where the former one was.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::config::plan::{Identity, Plan, Trust};
use crate::files::published::{AllPublished, Published};
use crate::generation::Generation;
use crate::identity::snapshot::IdentitySnapshot;
use crate::tasks::Tasks;
use crate::telemetry::Telemetry;
use crate::telemetry::readiness::Readiness;
use crate::trust::snapshot::TrustSnapshot;
use crate::workload::Directory;
use crate::{identity, trust, upstream};

/// All of them.
pub(super) struct Sources {
    identities: Kind<Identity, IdentitySnapshot>,
    trusts: Kind<Trust, TrustSnapshot>,
    directory: Directory,
    readiness: Readiness,
    tasks: Tasks,
}

/// The sources of one kind, in the order of the Plan.
struct Kind<D, S> {
    held: Vec<Held<D, S>>,
    published: AllPublished<S>,
}

struct Held<D, S> {
    definition: Arc<D>,
    published: Published<S>,
    /// Ends the watch when this is dropped.
    _watch: DropGuard,
}

impl Sources {
    /// None yet.
    pub(super) fn new(
        directory: Directory,
        readiness: &Readiness,
        telemetry: &Telemetry,
        tasks: &Tasks,
    ) -> Self {
        let sources = Self {
            identities: Kind::new(),
            trusts: Kind::new(),
            directory,
            readiness: readiness.clone(),
            tasks: tasks.clone(),
        };
        telemetry.register(identity::metrics(Arc::clone(&sources.identities.published)));
        telemetry.register(trust::metrics(Arc::clone(&sources.trusts.published)));
        sources
    }

    /// What of a Plan cannot be loaded, each with its key, as `check` says it.
    pub(super) fn mistakes(&self, plan: &Plan) -> Vec<(String, String)> {
        let identities = plan.identities.iter().filter_map(|one| {
            let former = self.identities.find(|held| held.name == one.name);
            if former.is_some_and(|held| held.definition == *one) {
                return None;
            }
            let error = identity::usable(one, former.map(|held| &held.published)).err()?;
            Some((format!("identities.{}", one.name), error.to_string()))
        });
        let trusts = plan.trusts.iter().filter_map(|one| {
            if self.trusts.find(|held| *held == **one).is_some() {
                return None;
            }
            let error = trust::load::load(one).err()?;
            Some((format!("trusts.{}", one.name), error.to_string()))
        });
        // A file, read anew for every tunnel: nothing of it is held, so all of them are looked at.
        let proxies = plan.upstream_proxies.iter().filter_map(|one| {
            let error = upstream::credentials(one).err()?;
            Some((format!("upstream_proxies.{}.credentials", one.name), error.to_string()))
        });
        identities.chain(trusts).chain(proxies).collect()
    }

    /// Opens what is new in a Plan, ends what is not in it, and makes a generation of it.
    pub(super) fn generation(&mut self, number: u64, plan: Plan) -> Arc<Generation> {
        let Self { identities, trusts, directory, readiness, tasks } = self;
        identities.follow(
            &plan.identities,
            |one| &one.name,
            |one, former, cancel| {
                let source = identity::Source::open(&one, former, readiness, directory);
                let published = source.published();
                tasks.spawn(source.watch(cancel));
                published
            },
            tasks,
        );
        trusts.follow(
            &plan.trusts,
            |one| &one.name,
            |one, former, cancel| {
                let source = trust::Source::open(one, former, readiness);
                let published = source.published();
                tasks.spawn(source.watch(cancel));
                published
            },
            tasks,
        );
        Arc::new(Generation::new(
            number,
            Arc::new(plan),
            identities.held.iter().map(|held| Arc::clone(&held.published.shared)).collect(),
            trusts.held.iter().map(|held| Arc::clone(&held.published.shared)).collect(),
        ))
    }
}

impl<D: PartialEq, S> Kind<D, S> {
    fn new() -> Self {
        Self { held: Vec::new(), published: Arc::new(ArcSwap::default()) }
    }

    fn find(&self, wanted: impl Fn(&D) -> bool) -> Option<&Held<D, S>> {
        self.held.iter().find(|held| wanted(&held.definition))
    }

    fn follow(
        &mut self,
        definitions: &[Arc<D>],
        name: impl Fn(&D) -> &Arc<str>,
        open: impl Fn(Arc<D>, Option<&Published<S>>, CancellationToken) -> Published<S>,
        tasks: &Tasks,
    ) {
        let mut before = std::mem::take(&mut self.held);
        for definition in definitions {
            let same = before.iter().position(|held| name(&held.definition) == name(definition));
            let former = same.map(|index| before.swap_remove(index));
            self.held.push(match former {
                Some(held) if held.definition == *definition => held,
                former => {
                    let cancel = tasks.token().child_token();
                    let former = former.as_ref().map(|held| &held.published);
                    let published = open(Arc::clone(definition), former, cancel.clone());
                    Held { definition: Arc::clone(definition), published, _watch: cancel.drop_guard() }
                }
            });
        }
        self.published.store(Arc::new(self.held.iter().map(|held| held.published.clone()).collect()));
    }
}
