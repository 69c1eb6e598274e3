//! What every candidate must do: the part of the state engine that a data structure or a library decides.
//!
//! Commands are batches of puts, each atomic and one revision. All versions are kept until compaction, findable by key and by revision, as watches and reads at a revision need.

use std::path::Path;

use anyhow::Result;

pub type Pair = (Vec<u8>, Vec<u8>);

pub trait Engine: Sized {
    const NAME: &'static str;
    type View: View;

    /// Opens what is in the directory, or an empty store. Reads and writes can begin on return.
    fn open(dir: &Path) -> Result<Self>;

    /// The index of the last batch that is held, read from the data itself.
    fn applied(&self) -> u64;

    /// Applies one batch as the next index, all or nothing with it, without waiting for a disk; gives its revision, the
    /// first of which is 1. Each put looks up the version it replaces, as every command of ours must.
    fn apply(&mut self, puts: &[Pair]) -> Result<u64>;

    /// Forgets up to `steps` replaced versions below `revision`; gives how many.
    fn compact(&mut self, revision: u64, steps: usize) -> Result<usize>;

    /// A picture that later batches do not move. Must not block them.
    fn view(&self) -> Result<Self::View>;

    /// Makes what is applied now durable, beside further batches; gives a handle to wait for.
    fn persist(&mut self) -> Result<std::thread::JoinHandle<Result<()>>>;

    /// Called now and then, for engines that persist or tidy up by themselves.
    fn settle(&mut self) -> Result<()> {
        Ok(())
    }
}

pub trait View: Send + 'static {
    /// The newest value.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>>;

    /// The value at a revision.
    fn get_at(&self, key: &[u8], revision: u64) -> Result<Option<Vec<u8>>>;

    /// Newest pairs from a key on, at most `limit`.
    fn scan(&self, from: &[u8], limit: usize) -> Result<Vec<Pair>>;

    /// Keys changed from a revision on, at most `limit`. Only the contract asks.
    #[cfg_attr(not(test), allow(dead_code))]
    fn changes(&self, from: u64, limit: usize) -> Result<Vec<Vec<u8>>>;
}
