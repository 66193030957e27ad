//! Bytes under way: a fixed block with a filled middle, lent from a worker's stock.
//!
//! A connection that waits holds none: an empty buffer gives its block back until there is something to read. A busy one starts small, and takes a large block when it
//! fills the small one: short requests stay in cache, bulk transfers save system calls.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

use super::client_io::ClientIo;

/// Enough for nearly every head, and for one small message.
pub const SMALL: usize = 8 * 1024;
/// Blocks of each size a worker keeps for the next connection.
const KEPT: usize = 64;

/// A worker's stock of blocks.
#[derive(Debug)]
pub struct Stock {
    large: usize,
    small_blocks: RefCell<Vec<Box<[u8]>>>,
    large_blocks: RefCell<Vec<Box<[u8]>>>,
}

/// Bytes read and not yet written, in a block of the stock.
#[derive(Debug)]
pub struct Buffer {
    stock: Rc<Stock>,
    block: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Stock {
    /// `large` is the size of a large block, in bytes.
    pub fn new(large: usize) -> Rc<Self> {
        Rc::new(Self {
            large: large.max(SMALL),
            small_blocks: RefCell::default(),
            large_blocks: RefCell::default(),
        })
    }

    /// An empty buffer; it takes a block when it is filled.
    pub fn buffer(self: &Rc<Self>) -> Buffer {
        Buffer { stock: self.clone(), block: Box::default(), start: 0, end: 0 }
    }

    fn small_block(&self) -> Box<[u8]> {
        self.small_blocks.borrow_mut().pop().unwrap_or_else(|| vec![0; SMALL].into())
    }

    fn large_block(&self) -> Box<[u8]> {
        self.large_blocks.borrow_mut().pop().unwrap_or_else(|| vec![0; self.large].into())
    }

    fn take_back(&self, block: Box<[u8]>) {
        let shelf = match block.len() {
            SMALL => &self.small_blocks,
            n if n == self.large => &self.large_blocks,
            _ => return,
        };
        let mut shelf = shelf.borrow_mut();
        if shelf.len() < KEPT {
            shelf.push(block);
        }
    }
}

impl Buffer {
    /// What was read and not yet consumed.
    pub fn filled(&self) -> &[u8] {
        &self.block[self.start..self.end]
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Takes `n` bytes off the front.
    pub fn consume(&mut self, n: usize) {
        debug_assert!(n <= self.end - self.start);
        self.start += n;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Reads once. Where there is no room, what is filled moves to the front, and then into a larger
    /// block, up to `limit` bytes. `Ready(Ok(0))`: the other side ended, or the limit is reached.
    pub fn poll_fill<R: AsyncRead + Unpin>(
        &mut self,
        reader: &mut R,
        cx: &mut Context<'_>,
        limit: usize,
    ) -> Poll<std::io::Result<usize>> {
        self.take_block();
        if self.end == self.block.len() {
            self.make_room(limit);
        }
        let mut space = ReadBuf::new(&mut self.block[self.end..]);
        let read = Pin::new(reader).poll_read(cx, &mut space);
        let n = space.filled().len();
        if n == 0 {
            self.release();
        }
        ready!(read)?;
        self.end += n;
        Poll::Ready(Ok(n))
    }

    /// Reads what is there without waiting; for an empty buffer.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there after all.
    pub fn try_fill(&mut self, stream: &mut ClientIo) -> std::io::Result<usize> {
        self.take_block();
        let n = stream.try_read(&mut self.block[self.end..])?;
        self.end += n;
        Ok(n)
    }

    fn take_block(&mut self) {
        if self.block.is_empty() {
            self.block = self.stock.small_block();
        }
    }

    /// Gives the block back where nothing is in it, for whoever will not fill it again soon.
    pub fn release(&mut self) {
        if self.is_empty() {
            self.give_block_back();
        }
    }

    fn give_block_back(&mut self) {
        self.stock.take_back(std::mem::take(&mut self.block));
        (self.start, self.end) = (0, 0);
    }

    fn make_room(&mut self, limit: usize) {
        if self.start > 0 {
            self.block.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.end == self.block.len() && self.block.len() < limit {
            self.swap_block(if self.block.len() < self.stock.large {
                self.stock.large_block()
            } else {
                vec![0; limit].into()
            });
        }
    }

    /// Moves to a large block, for a stream that fills the small one.
    pub fn grow(&mut self) {
        if self.block.len() < self.stock.large {
            self.swap_block(self.stock.large_block());
        }
    }

    /// The last read filled the block to its end: more is likely waiting.
    pub fn is_full(&self) -> bool {
        self.end == self.block.len() && !self.block.is_empty()
    }

    fn swap_block(&mut self, mut block: Box<[u8]>) {
        let len = self.end - self.start;
        block[..len].copy_from_slice(self.filled());
        self.stock.take_back(std::mem::replace(&mut self.block, block));
        (self.start, self.end) = (0, len);
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.give_block_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    use tokio::io::AsyncWrite as _;

    fn fill(buffer: &mut Buffer, mut bytes: &[u8], limit: usize) -> usize {
        let mut cx = Context::from_waker(Waker::noop());
        let mut n = 0;
        while let Poll::Ready(Ok(read @ 1..)) = buffer.poll_fill(&mut bytes, &mut cx, limit) {
            n += read;
        }
        n
    }

    #[test]
    fn grows_to_its_limit_and_keeps_the_bytes() {
        let stock = Stock::new(2 * SMALL);
        let mut buffer = stock.buffer();
        let bytes: Vec<u8> = (0..5 * SMALL).map(|i| i as u8).collect();
        assert_eq!(fill(&mut buffer, &bytes, 3 * SMALL), 3 * SMALL);
        assert_eq!(buffer.filled(), &bytes[..3 * SMALL]);
        buffer.consume(SMALL);
        assert_eq!(fill(&mut buffer, &bytes[3 * SMALL..], 3 * SMALL), SMALL);
        assert_eq!(buffer.filled(), &bytes[SMALL..4 * SMALL]);
    }

    #[test]
    fn blocks_come_back_and_the_shelf_is_bounded() {
        let stock = Stock::new(2 * SMALL);
        let filled = || {
            let mut buffer = stock.buffer();
            fill(&mut buffer, b"x", 0);
            buffer
        };
        let many: Vec<_> = (0..2 * KEPT).map(|_| filled()).collect();
        drop(many);
        assert_eq!(stock.small_blocks.borrow().len(), KEPT);
        let mut buffer = filled();
        buffer.grow();
        drop(buffer);
        assert_eq!((stock.small_blocks.borrow().len(), stock.large_blocks.borrow().len()), (KEPT, 1));
    }

    #[test]
    fn who_waits_holds_no_block() {
        let stock = Stock::new(2 * SMALL);
        let mut buffer = stock.buffer();
        let mut cx = Context::from_waker(Waker::noop());
        let (mut silent, mut other) = tokio::io::duplex(64);
        assert!(buffer.poll_fill(&mut silent, &mut cx, 0).is_pending());
        assert!(buffer.block.is_empty() && !buffer.is_full());
        assert!(Pin::new(&mut other).poll_write(&mut cx, b"abc").is_ready());
        assert!(matches!(buffer.poll_fill(&mut silent, &mut cx, 0), Poll::Ready(Ok(3))));
        buffer.grow();
        buffer.consume(2);
        assert!(buffer.poll_fill(&mut silent, &mut cx, 0).is_pending());
        assert_eq!((buffer.filled(), buffer.block.len()), (&b"c"[..], 2 * SMALL), "what is there is kept");
        buffer.consume(1);
        assert!(buffer.poll_fill(&mut silent, &mut cx, 0).is_pending());
        assert!(buffer.block.is_empty(), "and then given back, the large block too");
        assert_eq!(stock.large_blocks.borrow().len(), 1);
    }
}
