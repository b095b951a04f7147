//! The addresses of a mesh's coordinators as one client knows them, in the order in which they are
//! tried, and whom its connections stand to.
//!
//! One coordinator leads; the others answer every call with `UNAVAILABLE` and the leader's
//! addresses. A client that [heeds](Route::heed) this puts them first and drops its connections to
//! everybody else, so that the next call goes to the leader.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mesh_proto::code::LEADER_HEADER;
use tokio::sync::watch;
use tonic::Status;

use crate::token::is_endpoint;

/// More addresses than a mesh has coordinators.
const MOST: usize = 64;

/// The way to the leader. Clones share it, and so do the channels that are made on it.
#[derive(Clone, Debug)]
pub struct Route(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    endpoints: Mutex<Vec<String>>,
    /// To whom connections may stand from now on: only to these, or, for none, all have to be made
    /// anew. Each message ends the connections that do not fit it.
    only: watch::Sender<Vec<String>>,
}

impl Route {
    /// `endpoints` are `host:port`.
    #[must_use]
    pub fn new(endpoints: Vec<String>) -> Self {
        Self(Arc::new(Inner { endpoints: Mutex::new(endpoints), only: watch::Sender::default() }))
    }

    /// Nothing that runs under the lock can leave the list half changed.
    fn lock(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.endpoints.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// In the order in which they are tried.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        self.lock().clone()
    }

    /// Takes the addresses that the leader names in place of those known. Says whether any is new
    /// or gone; connections stay in any case.
    pub fn learn(&self, told: &[String]) -> bool {
        let told: Vec<String> = told.iter().filter(|one| is_endpoint(one)).take(MOST).cloned().collect();
        let mut known = self.lock();
        if told.is_empty() || same(&told, &known) {
            return false;
        }
        // Whoever is connected to stays first.
        let first = known.first().filter(|first| told.contains(first)).cloned();
        *known = told;
        if let Some(first) = first {
            to_front(&mut known, &[first]);
        }
        true
    }

    /// Goes on to the leader if the answer is a stand-by's; says whether it is. When the stand-by
    /// knows no leader, the next address is tried.
    pub fn heed(&self, answer: &Status) -> bool {
        let Some(leader) = leader_in(answer) else { return false };
        if leader.is_empty() {
            self.avoid();
        } else {
            to_front(&mut self.lock(), &leader);
            self.0.only.send_replace(leader);
        }
        true
    }

    /// Who is connected to does not answer: its address is tried last, and connections are made
    /// anew.
    pub fn avoid(&self) {
        let mut known = self.lock();
        if known.len() > 1 {
            known.rotate_left(1);
        }
        drop(known);
        self.0.only.send_replace(Vec::new());
    }

    /// A connection to this address came about.
    pub(crate) fn connected(&self, endpoint: &str) {
        to_front(&mut self.lock(), &[endpoint.to_owned()]);
    }

    /// Ends when a connection to `endpoint` that is made now has to.
    pub(crate) fn over(&self, endpoint: &str) -> impl Future<Output = ()> + Send + 'static {
        let mut only = self.0.only.subscribe();
        only.mark_unchanged();
        let endpoint = endpoint.to_owned();
        async move {
            loop {
                if only.changed().await.is_err() {
                    return std::future::pending().await;
                }
                if !only.borrow_and_update().contains(&endpoint) {
                    return;
                }
            }
        }
    }
}

/// The leader's addresses as a stand-by names them, maybe none; nothing when the answer is not a
/// stand-by's.
#[must_use]
pub fn leader_in(answer: &Status) -> Option<Vec<String>> {
    let named = answer.metadata().get(LEADER_HEADER)?.to_str().unwrap_or_default();
    Some(named.split(',').filter(|one| is_endpoint(one)).take(MOST).map(str::to_owned).collect())
}

/// Puts `first` before all others, each once.
pub fn to_front(endpoints: &mut Vec<String>, first: &[String]) {
    endpoints.retain(|one| !first.contains(one));
    endpoints.splice(0..0, first.iter().cloned());
    endpoints.truncate(MOST);
}

fn same(one: &[String], other: &[String]) -> bool {
    one.iter().all(|address| other.contains(address)) && other.iter().all(|address| one.contains(address))
}

#[cfg(test)]
mod unit {
    use mesh_proto::code::Code;

    use super::*;

    fn of(endpoints: &[&str]) -> Vec<String> {
        endpoints.iter().map(|&one| one.to_owned()).collect()
    }

    fn standby(leader: &str) -> Status {
        let mut status = Code::Unavailable.status("a stand-by");
        status.metadata_mut().insert(LEADER_HEADER, leader.parse().unwrap());
        status
    }

    #[tokio::test]
    async fn only_a_stand_bys_answer_moves_the_route_and_only_others_are_left() {
        let route = Route::new(of(&["a:1", "b:1"]));
        let (mut to_a, mut to_b) = (Box::pin(route.over("a:1")), Box::pin(route.over("b:1")));
        assert!(!route.heed(&Code::Unavailable.status("it recovers")));
        assert!(route.heed(&standby("c:1,b:1")));
        assert_eq!(route.endpoints(), of(&["c:1", "b:1", "a:1"]));
        to_a.as_mut().await;
        assert!(futures_util::poll!(&mut to_b).is_pending(), "a connection to the leader was dropped");
        assert!(route.heed(&standby("")), "it knows no leader");
        assert_eq!(route.endpoints(), of(&["b:1", "a:1", "c:1"]));
        to_b.await;
        assert!(route.heed(&standby("no address")));
    }

    #[test]
    fn what_the_leader_names_takes_the_place_of_what_was_known() {
        let route = Route::new(of(&["a:1", "b:1"]));
        assert!(!route.learn(&of(&["b:1", "a:1"])), "the order is nothing new");
        assert!(!route.learn(&[]), "an older coordinator names none");
        route.connected("b:1");
        assert!(route.learn(&of(&["c:1", "b:1", "nonsense"])));
        assert_eq!(route.endpoints(), of(&["b:1", "c:1"]));
    }
}
