//! What one generation of an intermediate has issued, shared by all workers: one certificate for each service account, or
//! each pod, that asked for one.
//!
//! A request finds its certificate without a lock. The first of a workload makes it; after that a task of the control
//! plane renews it ([`Issuer::look`]) as long as somebody asks for it. It goes with the last pod of its workload, when
//! there are too many, and when the intermediate is replaced; [`OfWorkload`] says so to whoever holds one.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use arc_swap::{ArcSwapOption, Guard};

use super::mint::{Mint, Minted};
use super::stats::Stats;
use crate::backoff;
use crate::certs::CertsError;
use crate::certs::names::Name;
use crate::identity::snapshot::{Holder, IdentitySnapshot, OfWorkload};
use crate::workload::{Account, Directory, Pod};

/// A certificate that ends so soon is not presented any more: a handshake takes time, and clocks differ.
const MARGIN: Duration = Duration::from_secs(1);
/// After so many looks, a minute's, a pod for which was waited in vain is waited for again.
const IN_VAIN: u64 = 240;

/// What an issuer goes by.
#[derive(Debug)]
pub(super) struct Terms {
    /// The identity's name in the Plan.
    pub(super) name: Arc<str>,
    /// The intermediate's.
    pub(super) generation: u64,
    /// Each pod has its own.
    pub(super) pod_uid: bool,
    /// How many are kept.
    pub(super) most: usize,
}

/// Issues for workloads, by one generation of an intermediate.
#[derive(Debug)]
pub struct Issuer {
    terms: Terms,
    mint: Mint,
    directory: Directory,
    stats: Arc<Stats>,
    slots: Mutex<HashMap<Key, Arc<Slot>>>,
    /// Grows with every look: the clock by which it is known who has not been asked for lately.
    looks: AtomicU64,
    /// What was known of accounts at the last look.
    seen: AtomicU64,
    /// Pods for which was waited in vain, and at which look: not with every request.
    in_vain: Mutex<HashMap<Box<str>, u64>>,
    /// Another one issues now.
    ended: AtomicBool,
    me: Weak<Self>,
}

/// Who shares a certificate.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct Key {
    account: Account,
    /// Where each pod has its own.
    pod_uid: Option<Box<str>>,
}

/// One workload's certificate.
#[derive(Debug)]
pub struct Slot {
    key: Key,
    current: ArcSwapOption<IdentitySnapshot>,
    /// Held while one is made: another worker that wants it waits for it.
    making: Mutex<()>,
    /// At which look it was asked for last.
    asked: AtomicU64,
    /// It was asked for since it was made.
    in_use: AtomicBool,
    /// When it is to be renewed, in milliseconds since 1970.
    due: AtomicU64,
    gone: AtomicBool,
}

/// Why a workload has no certificate.
#[derive(Debug, thiserror::Error)]
pub enum NotIssued {
    /// The API server has not said what the pod runs as.
    #[error("the API server has not confirmed the service account of pod {0}")]
    Unconfirmed(String),
    /// None could be made.
    #[error("no certificate could be issued: {0}")]
    Failed(#[from] CertsError),
}

impl Issuer {
    pub(super) fn new(terms: Terms, mint: Mint, directory: Directory, stats: Arc<Stats>) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            terms,
            mint,
            directory,
            stats,
            slots: Mutex::default(),
            looks: AtomicU64::new(0),
            seen: AtomicU64::new(0),
            in_vain: Mutex::default(),
            ended: AtomicBool::new(false),
            me: me.clone(),
        })
    }

    /// What it has made, and what that cost.
    pub fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    /// How many certificates it keeps.
    pub fn cached(&self) -> usize {
        self.slots().values().filter(|slot| slot.current.load().is_some()).count()
    }

    /// Where a pod's certificate is kept.
    ///
    /// # Errors
    /// [`NotIssued::Unconfirmed`]: the API server has not said yet what the pod runs as, or that it has gone.
    pub fn of_pod(&self, uid: &str) -> Result<Arc<Slot>, NotIssued> {
        let account = self.account(uid).ok_or_else(|| NotIssued::Unconfirmed(uid.to_owned()))?;
        let pod_uid = self.terms.pod_uid.then(|| uid.into());
        Ok(self.slot(Key { account: Account::clone(&account), pod_uid }))
    }

    /// Whether it is worth waiting for a pod: nothing is known of it, and nobody has waited for it in vain of late.
    pub fn may_become_known(&self, uid: &str) -> bool {
        self.account(uid).is_none() && !self.in_vain().contains_key(uid)
    }

    /// Waits for a pod of which the API server may be about to tell.
    pub async fn wait_for_pod(&self, uid: &str, within: Duration) {
        let confirmed = |pod: &Pod| pod.confirmed_account().is_some();
        if self.directory.wait_for(uid, confirmed, within).await.is_none() {
            self.in_vain().insert(uid.into(), self.looks.load(Relaxed));
        }
    }

    /// What a slot presents now; made here if there is none that is good. `None`: the slot is given up, or another
    /// issuer has taken over.
    ///
    /// # Errors
    /// None could be made.
    pub fn present(&self, slot: &Slot) -> Result<Guard<Option<Arc<IdentitySnapshot>>>, NotIssued> {
        let look = self.looks.load(Relaxed);
        // Others read the same line: it is written where it says something new.
        if slot.asked.load(Relaxed) != look {
            slot.asked.store(look, Relaxed);
        }
        if !slot.in_use.load(Relaxed) {
            slot.in_use.store(true, Relaxed);
        }
        let now = crate::clock::now();
        let current = slot.current.load();
        if current.as_ref().is_some_and(|current| is_good(current, now)) {
            return Ok(current);
        }
        let _making = slot.making.lock().unwrap_or_else(PoisonError::into_inner);
        let current = slot.current.load();
        if current.as_ref().is_some_and(|current| is_good(current, now)) {
            return Ok(current);
        }
        self.make(slot, now)?;
        Ok(slot.current.load())
    }

    /// Makes a certificate again that is good still.
    pub(super) fn renew(&self, slot: &Slot, now: SystemTime) {
        let _making = slot.making.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.is_gone() || !slot.is_due(now) {
            return;
        }
        if let Err(error) = self.make(slot, now) {
            let (identity, account) = (&self.terms.name, &slot.key.account);
            let (namespace, service_account) = (&account.namespace, &account.name);
            tracing::warn!(%identity, %namespace, %service_account, %error, "a workload's certificate cannot be renewed");
            // Not with every look.
            slot.due_at(now + backoff::jittered(Duration::from_secs(30)));
        }
    }

    /// A certificate for a server of these names, and when another is to be asked for; the caller keeps it.
    ///
    /// # Errors
    /// None could be made: a name may be outside of what the intermediate may issue for.
    pub fn server(&self, names: &[Name], now: SystemTime) -> Result<(Minted, SystemTime), NotIssued> {
        let minted = self.stats.counted(|| self.mint.server(names, now))?;
        let due = renewal(&minted, now);
        Ok((minted, due))
    }

    fn make(&self, slot: &Slot, now: SystemTime) -> Result<(), CertsError> {
        let Key { account, pod_uid } = &slot.key;
        let minted = self.stats.counted(|| self.mint.workload(account, pod_uid.as_deref(), now))?;
        let spiffe_id = self.mint.spiffe_id(account)?.text().into();
        slot.due_at(renewal(&minted, now));
        slot.in_use.store(false, Relaxed);
        let of = OfWorkload { spiffe_id, issuer: self.me.clone(), retired: AtomicBool::new(false) };
        slot.put(Some(Arc::new(IdentitySnapshot {
            name: Arc::clone(&self.terms.name),
            generation: self.terms.generation,
            certified_key: minted.certified_key,
            until: Some(minted.leaf.not_after),
            leaf: minted.leaf,
            holder: Holder::Workload(of),
        })));
        // Whoever gives it up says so first and takes it away then; one of the two sees the other.
        if slot.is_gone() || self.ended.load(SeqCst) {
            slot.put(None);
        }
        Ok(())
    }

    fn slot(&self, key: Key) -> Arc<Slot> {
        let mut slots = self.slots();
        if let Some(slot) = slots.get(&key) {
            return Arc::clone(slot);
        }
        if slots.len() >= self.terms.most
            && let Some(oldest) = slots.values().min_by_key(|slot| slot.asked.load(Relaxed)).cloned()
        {
            slots.remove(&oldest.key);
            oldest.go();
        }
        let slot = Arc::new(Slot::new(key.clone(), self.looks.load(Relaxed)));
        slots.insert(key, Arc::clone(&slot));
        slot
    }

    /// Lets go of whose pods have gone, and of what has expired unused. What is to be renewed.
    pub(super) fn look(&self, now: SystemTime) -> Vec<Arc<Slot>> {
        let look = self.looks.fetch_add(1, Relaxed);
        self.in_vain().retain(|_, at| look.saturating_sub(*at) < IN_VAIN);
        let changes = self.directory.changes();
        let mut slots = self.slots();
        if self.seen.swap(changes, Relaxed) != changes {
            let there = self.there();
            slots.retain(|key, slot| {
                let stays = there.contains(key);
                if !stays {
                    slot.go();
                }
                stays
            });
        }
        slots.retain(|_, slot| {
            let over = slot.current.load().as_ref().is_some_and(|current| !is_good(current, now));
            if over {
                slot.go();
            }
            !over
        });
        slots.values().filter(|slot| slot.in_use.load(Relaxed) && slot.is_due(now)).cloned().collect()
    }

    fn account(&self, uid: &str) -> Option<Arc<Account>> {
        self.directory.of(uid)?.confirmed_account().cloned()
    }

    fn there(&self) -> HashSet<Key> {
        let pod_uid = |uid: &str| self.terms.pod_uid.then(|| uid.into());
        let known = self.directory.all();
        let confirmed = known.iter().filter_map(|(uid, pod)| Some((uid, pod.confirmed_account()?)));
        confirmed
            .map(|(uid, account)| Key { account: Account::clone(account), pod_uid: pod_uid(uid) })
            .collect()
    }

    /// Takes over the workloads of the one before: they have new certificates before they ask.
    pub(super) fn follow(&self, former: &Self) {
        let look = self.looks.load(Relaxed);
        let known = former.slots();
        let used = known.iter().filter(|(_, slot)| slot.current.load().is_some());
        let mut slots = self.slots();
        for (key, _) in used.take(self.terms.most) {
            let slot = Slot::new(key.clone(), look);
            slot.in_use.store(true, Relaxed);
            slots.insert(key.clone(), Arc::new(slot));
        }
    }

    /// Nothing that it has issued is presented any more.
    pub(super) fn end(&self) {
        self.ended.store(true, SeqCst);
        self.slots().drain().for_each(|(_, slot)| slot.go());
    }

    fn in_vain(&self) -> MutexGuard<'_, HashMap<Box<str>, u64>> {
        self.in_vain.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<Key, Arc<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    fn new(key: Key, look: u64) -> Self {
        Self {
            key,
            current: ArcSwapOption::empty(),
            making: Mutex::default(),
            asked: AtomicU64::new(look),
            in_use: AtomicBool::new(false),
            due: AtomicU64::new(0),
            gone: AtomicBool::new(false),
        }
    }

    /// Whether it is to be looked for anew: its pods have gone, or it was given up.
    pub fn is_gone(&self) -> bool {
        self.gone.load(SeqCst)
    }

    fn go(&self) {
        self.gone.store(true, SeqCst);
        self.put(None);
    }

    fn put(&self, next: Option<Arc<IdentitySnapshot>>) {
        let former = self.current.swap(next);
        if let Some(of) = former.as_ref().and_then(|one| one.of_workload()) {
            of.retired.store(true, Relaxed);
        }
    }

    fn is_due(&self, now: SystemTime) -> bool {
        millis(now) >= self.due.load(Relaxed)
    }

    fn due_at(&self, at: SystemTime) {
        self.due.store(millis(at), Relaxed);
    }
}

fn millis(at: SystemTime) -> u64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// After two thirds of what is left of it; what was made together is not renewed together.
fn renewal(minted: &Minted, now: SystemTime) -> SystemTime {
    let left = minted.leaf.not_after.duration_since(now).unwrap_or_default();
    now + left.mul_f64(0.6) + backoff::spread(left.mul_f64(2.0 / 15.0))
}

fn is_good(current: &IdentitySnapshot, now: SystemTime) -> bool {
    now + MARGIN <= current.leaf.not_after
}
