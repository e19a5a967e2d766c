//! What a polling bridge is to be told: requests, and exchanges that are over. Delivered, acknowledged, delivered again. Pure.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::TUNING;
use super::wire::{Batch, Capabilities};

/// How an exchange ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Finished {
    /// The answer came.
    Answered,
    /// Its caller left, or it failed.
    Abandoned,
}

/// The exchanges of a link and where each stands; `E` is one exchange.
pub(super) struct Queue<E> {
    pub(super) capabilities: Capabilities,
    next_id: u64,
    exchanges: HashMap<u64, E>,
    /// Not delivered yet.
    queue: VecDeque<u64>,
    /// Delivered by the last batch, and not acknowledged.
    unacknowledged: Vec<u64>,
    /// Over; the bridge is to be told.
    cancelled: Vec<u64>,
    /// Told by the last batch, and not acknowledged.
    told: Vec<u64>,
    /// The number of the last batch.
    batch: u64,
    batch_sent: Option<Instant>,
    round_trip: Option<Duration>,
    /// The number of the newest poll: an older one that still waits gives way.
    turn: u64,
    /// How the last exchanges ended.
    finished: VecDeque<(u64, Finished)>,
    /// The bridge should register anew.
    drain: Notice,
    /// It should go on over the connections that it has.
    settle: Notice,
}

/// How far something has come that the bridge is to be told once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Notice {
    /// It is not to be told.
    No,
    /// The next batch tells it.
    Wanted,
    /// The last batch told it, and was not acknowledged.
    Told,
    /// The bridge knows.
    Known,
}

impl Notice {
    fn tell(&mut self) {
        if *self == Self::Wanted {
            *self = Self::Told;
        }
    }

    /// The batch that may have told it came, or did not.
    fn resolve(&mut self, came: bool) {
        if *self == Self::Told {
            *self = if came { Self::Known } else { Self::Wanted };
        }
    }
}

/// What one poll is told.
pub(super) struct Taken<'a, E> {
    /// The answer, without requests.
    pub(super) batch: Batch,
    /// The exchanges to deliver, with their numbers.
    pub(super) requests: Vec<(u64, &'a E)>,
    /// The numbers of those that are over.
    pub(super) cancelled: &'a [u64],
}

impl<E> Queue<E> {
    /// Nothing has come yet.
    pub(super) fn new(capabilities: Capabilities) -> Self {
        Self {
            capabilities,
            next_id: 1,
            exchanges: HashMap::new(),
            queue: VecDeque::new(),
            unacknowledged: Vec::new(),
            cancelled: Vec::new(),
            told: Vec::new(),
            batch: 0,
            batch_sent: None,
            round_trip: None,
            turn: 0,
            finished: VecDeque::new(),
            drain: Notice::No,
            settle: Notice::No,
        }
    }

    /// Sets whether the bridge should register anew.
    pub(super) fn set_draining(&mut self, draining: bool) {
        self.drain = if draining { Notice::Wanted } else { Notice::No };
    }

    /// The bridge should go on over the connections that it has.
    pub(super) fn settle(&mut self) {
        self.settle = Notice::Wanted;
    }

    /// Whether it knows that.
    pub(super) fn is_settled(&self) -> bool {
        self.settle == Notice::Known
    }

    /// How many exchanges there are.
    pub(super) fn len(&self) -> usize {
        self.exchanges.len()
    }

    /// How many of them the bridge was not told of yet.
    pub(super) fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Whether the bridge is still to be told of exchanges that are over.
    pub(super) fn has_cancelled(&self) -> bool {
        !self.cancelled.is_empty()
    }

    /// From the sending of a batch to its acknowledgement: about a round trip.
    pub(super) fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    /// One more, to be delivered.
    pub(super) fn push(&mut self, exchange: E) -> u64 {
        let number = self.next_id;
        self.next_id += 1;
        self.exchanges.insert(number, exchange);
        self.queue.push_back(number);
        number
    }

    /// One of them.
    pub(super) fn find(&self, number: u64) -> Option<&E> {
        self.exchanges.get(&number)
    }

    /// How one that is no more ended, if that is remembered.
    pub(super) fn finished_as(&self, number: u64) -> Option<Finished> {
        let found = self.finished.iter().rfind(|(other, _)| *other == number);
        found.map(|(_, finished)| *finished)
    }

    /// One is over.
    pub(super) fn finish(&mut self, number: u64, finished: Finished) -> Option<E> {
        let exchange = self.exchanges.remove(&number)?;
        self.finished.push_back((number, finished));
        if self.finished.len() > TUNING.remembered {
            self.finished.pop_front();
        }
        self.unacknowledged.retain(|other| *other != number);
        match self.queue.iter().position(|other| *other == number) {
            Some(at) => drop(self.queue.remove(at)),
            None if finished == Finished::Abandoned => self.cancelled.push(number),
            None => {}
        }
        if self.exchanges.is_empty() {
            self.exchanges.shrink_to(8);
            self.queue.shrink_to(8);
        }
        Some(exchange)
    }

    /// All are over; each with whether it had been delivered.
    pub(super) fn finish_all(&mut self) -> Vec<(E, bool)> {
        let numbers: Vec<u64> = self.exchanges.keys().copied().collect();
        let delivered = |number: &u64| !self.queue.contains(number);
        let delivered: Vec<bool> = numbers.iter().map(delivered).collect();
        let ended = numbers.into_iter().zip(delivered);
        ended
            .filter_map(|(number, delivered)| Some((self.finish(number, Finished::Abandoned)?, delivered)))
            .collect()
    }

    /// A poll begins, and says which batch it has. Returns its number.
    pub(super) fn begin_poll(&mut self, acknowledged: Option<u64>) -> u64 {
        let came = !self.capabilities.ack || acknowledged == Some(self.batch);
        if came {
            self.unacknowledged.clear();
            self.told.clear();
            if let Some(sent) = self.batch_sent.take().filter(|_| self.capabilities.ack) {
                self.round_trip = Some(sent.elapsed());
            }
        }
        self.drain.resolve(came);
        self.settle.resolve(came);
        self.turn += 1;
        self.turn
    }

    /// What is to be told to the poll of this turn, if there is anything to tell, or `whatever` there is. `size` tells the octets
    /// of a request.
    pub(super) fn take(&mut self, turn: u64, whatever: bool, size: impl Fn(&E) -> usize) -> Option<Taken<'_, E>> {
        let superseded = self.turn != turn;
        let news = !(self.queue.is_empty()
            && self.unacknowledged.is_empty()
            && self.cancelled.is_empty()
            && self.told.is_empty()
            && self.drain != Notice::Wanted
            && self.settle != Notice::Wanted);
        if superseded || (whatever && !news) {
            return Some(Taken {
                // Not the number of what the newer one got: who acknowledged that would lose it.
                batch: Batch {
                    batch: if superseded { 0 } else { self.batch },
                    ..self.empty_batch()
                },
                requests: Vec::new(),
                cancelled: &[],
            });
        }
        if !news {
            return None;
        }
        self.batch += 1;
        self.batch_sent = Some(Instant::now());
        self.drain.tell();
        self.settle.tell();
        self.told.append(&mut self.cancelled);
        // A bridge that never acknowledges may forget the oldest: they are hints.
        let over = self.told.len().saturating_sub(TUNING.told);
        self.told.drain(..over);
        self.fill(size);
        let batch = Batch {
            has_more: !self.queue.is_empty(),
            ..self.empty_batch()
        };
        let requests = self.unacknowledged.iter();
        let requests = requests.filter_map(|number| Some((*number, self.exchanges.get(number)?)));
        Some(Taken {
            batch,
            requests: requests.collect(),
            cancelled: &self.told,
        })
    }

    /// To those of the last batch that was not acknowledged, adds new ones as far as a batch goes.
    fn fill(&mut self, size: impl Fn(&E) -> usize) {
        let size = |number: &u64| self.exchanges.get(number).map_or(0, &size);
        let mut total: usize = self.unacknowledged.iter().map(size).sum();
        while self.unacknowledged.len() < TUNING.batch && total < TUNING.batch_size {
            let Some(number) = self.queue.pop_front() else {
                break;
            };
            total += size(&number);
            self.unacknowledged.push(number);
        }
    }

    fn empty_batch(&self) -> Batch {
        Batch {
            success: true,
            batch: self.batch,
            drain: self.drain != Notice::No,
            settle: self.settle != Notice::No,
            ..Batch::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(ack: bool) -> Queue<usize> {
        Queue::new(Capabilities {
            ack,
            parts: true,
            body_parts: true,
        })
    }

    /// One poll: the batch's number, the requests and the cancelled in it.
    fn poll(queue: &mut Queue<usize>, ack: Option<u64>) -> Option<(u64, Vec<u64>, Vec<u64>)> {
        let turn = queue.begin_poll(ack);
        let taken = queue.take(turn, false, |size| *size)?;
        let requests = taken.requests.into_iter().map(|(number, _)| number).collect();
        Some((taken.batch.batch, requests, taken.cancelled.to_vec()))
    }

    #[test]
    fn a_batch_comes_again_until_it_is_acknowledged() {
        let mut queue = queue(true);
        assert_eq!(poll(&mut queue, None), None);
        queue.push(1);
        assert_eq!(poll(&mut queue, None), Some((1, vec![1], vec![])));
        queue.push(1);
        assert_eq!(poll(&mut queue, None), Some((2, vec![1, 2], vec![])));
        assert_eq!(poll(&mut queue, Some(1)), Some((3, vec![1, 2], vec![])));
        assert_eq!(poll(&mut queue, Some(3)), None);
    }

    #[test]
    fn without_acknowledgement_delivery_is_all() {
        let mut queue = queue(false);
        queue.push(1);
        assert_eq!(poll(&mut queue, None), Some((1, vec![1], vec![])));
        assert_eq!(poll(&mut queue, None), None);
    }

    #[test]
    fn a_caller_that_left_is_told_only_for_what_was_delivered() {
        let mut queue = queue(true);
        queue.push(1);
        queue.finish(1, Finished::Abandoned);
        assert_eq!(poll(&mut queue, None), None);
        queue.push(1);
        poll(&mut queue, None);
        queue.finish(2, Finished::Abandoned);
        assert_eq!(poll(&mut queue, Some(1)), Some((2, vec![], vec![2])));
        assert_eq!(poll(&mut queue, Some(1)), Some((3, vec![], vec![2])));
        assert_eq!(poll(&mut queue, Some(3)), None);
        assert_eq!(queue.finished_as(2), Some(Finished::Abandoned));
    }

    #[test]
    fn a_bridge_that_is_to_settle_is_told_until_it_acknowledges_that() {
        let mut queue = queue(true);
        queue.push(1);
        poll(&mut queue, None);
        queue.settle();
        assert_eq!(poll(&mut queue, Some(1)), Some((2, vec![], vec![])));
        // That answer was lost on the way.
        assert_eq!(poll(&mut queue, Some(1)), Some((3, vec![], vec![])));
        assert!(!queue.is_settled());
        assert_eq!(poll(&mut queue, Some(3)), None);
        assert!(queue.is_settled());
    }

    #[test]
    fn a_batch_is_bounded_by_number_and_size() {
        let mut queue = queue(true);
        for _ in 0..TUNING.batch + 5 {
            queue.push(1);
        }
        assert_eq!(poll(&mut queue, None).unwrap().1.len(), TUNING.batch);
        assert_eq!(poll(&mut queue, Some(1)).unwrap().1.len(), 5);
        for _ in 0..4 {
            queue.push(TUNING.batch_size / 2);
        }
        assert_eq!(poll(&mut queue, Some(2)).unwrap().1.len(), 2);
        assert_eq!(poll(&mut queue, Some(3)).unwrap().1.len(), 2);
    }

    #[test]
    fn an_older_poll_gives_way_to_a_newer() {
        let mut queue = queue(true);
        let older = queue.begin_poll(None);
        let newer = queue.begin_poll(None);
        queue.push(1);
        let taken = queue.take(newer, false, |size| *size).unwrap();
        assert_eq!((taken.batch.batch, taken.requests.len()), (1, 1));
        // It is not told the number of a batch that it did not bring.
        let taken = queue.take(older, false, |size| *size).unwrap();
        assert_eq!((taken.batch.batch, taken.requests.len()), (0, 0));
    }
}
