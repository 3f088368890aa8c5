//! Changes that are not in force yet.

/// What needs attention.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// Sessions, or something else in the table.
    pub table: bool,
    /// Which prefixes belong to which peer, or the order of the peers.
    pub prefixes: bool,
    /// Where peers are: the paths to them, and the kernel's routes, since an endpoint may lie inside a remote prefix.
    pub endpoints: bool,
    /// The paths to all endpoints, which may lead over other neighbours or interfaces.
    pub paths: bool,
    /// The kernel's state has to be compared with the wanted state.
    pub ground: bool,
}

impl Due {
    /// Peers came, went, or got other prefixes or endpoints.
    pub const PEERS: Self = Self { table: true, prefixes: true, endpoints: true, paths: false, ground: true };

    /// The size of packets to a peer may have changed.
    pub const SIZES: Self = Self { table: true, prefixes: false, endpoints: false, paths: false, ground: true };

    /// Adds another one to this.
    pub fn add(&mut self, other: Self) {
        self.table |= other.table;
        self.prefixes |= other.prefixes;
        self.endpoints |= other.endpoints;
        self.paths |= other.paths;
        self.ground |= other.ground;
    }
}
