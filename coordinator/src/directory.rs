//! Where the mesh's coordinators are reached, as agents and people are told it: the leader first.

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::store::coordinators::Addresses;

/// A join token has room for no more.
const MOST: usize = 16;

/// The addresses of today. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Directory(Arc<ArcSwap<Addresses>>);

impl Directory {
    #[must_use]
    pub fn new(own: Addresses) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(own)))
    }

    /// `host:port` of every coordinator's port for members.
    #[must_use]
    pub fn members(&self) -> Vec<String> {
        first(&self.0.load().members)
    }

    /// `host:port` of every coordinator's port for joining.
    #[must_use]
    pub fn joining(&self) -> Vec<String> {
        first(&self.0.load().joining)
    }

    /// Takes what the database says, and whether that is new. This coordinator's own addresses
    /// are in it in any case.
    pub fn learn(&self, mut known: Addresses, own: &Addresses) -> bool {
        for (all, own) in [(&mut known.members, &own.members), (&mut known.joining, &own.joining)] {
            for address in own {
                if !all.contains(address) {
                    all.push(address.clone());
                }
            }
        }
        if **self.0.load() == known {
            return false;
        }
        self.0.store(Arc::new(known));
        true
    }
}

fn first(all: &[String]) -> Vec<String> {
    let mut some: Vec<String> = Vec::new();
    for address in all {
        if some.len() < MOST && !some.contains(address) {
            some.push(address.clone());
        }
    }
    some
}
