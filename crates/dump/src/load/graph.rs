//! The work of a load: which piece is done next, so that all workers stay busy and what takes longest is not left for the end.
//! Pieces wait for others, and some cannot be done beside others of the same table.

use std::collections::{BTreeSet, HashMap};

/// How a piece uses a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hold {
    /// Beside others who do the same.
    Shared,
    /// Nobody else may: the session would only wait for the server's lock.
    Alone,
}

/// A piece of work.
#[derive(Debug, Clone)]
pub(super) struct Node {
    /// How long it takes, in bytes of data that are loaded in that time.
    pub(super) cost: u64,
    /// What it counts when the longest way is looked for: for a part of a table, the whole table.
    pub(super) weight: u64,
    /// Pieces that must be done before, by their place in the list.
    pub(super) after: Vec<usize>,
    /// Tables that it uses.
    pub(super) holds: Vec<(i32, Hold)>,
    /// Whether it builds something of what is loaded, and does not load.
    pub(super) builds: bool,
}

/// What a worker gets.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// This piece.
    Node(usize),
    /// Nothing now; something when another piece is done.
    Wait,
    /// Nothing any more.
    Over,
}

/// All pieces, and how far they are.
#[derive(Debug)]
pub(super) struct Graph {
    nodes: Vec<Node>,
    dependents: Vec<Vec<usize>>,
    waits_for: Vec<usize>,
    /// The longest way from a piece to the end.
    ways: Vec<u64>,
    ready: [BTreeSet<(u64, std::cmp::Reverse<usize>)>; 2],
    held: HashMap<i32, (usize, Option<Hold>)>,
    workers: u64,
    /// Of what is not done.
    cost_left: u64,
    nodes_left: usize,
    /// Taken, and not done.
    running: u64,
}

impl Graph {
    /// Of pieces that wait for each other. What waits for itself, over whatever way, waits for nothing: a list of an archive
    /// that was put in another order by hand can have such.
    pub(super) fn new(mut nodes: Vec<Node>, workers: usize) -> Self {
        let order = order(&mut nodes);
        let mut dependents = vec![Vec::new(); nodes.len()];
        for (number, node) in nodes.iter().enumerate() {
            node.after.iter().for_each(|before| dependents[*before].push(number));
        }
        let mut ways = vec![0; nodes.len()];
        for number in order.into_iter().rev() {
            let behind = dependents[number].iter().map(|next| ways[*next]).max().unwrap_or(0);
            ways[number] = nodes[number].weight + behind;
        }
        let mut graph = Self {
            waits_for: nodes.iter().map(|node| node.after.len()).collect(),
            cost_left: nodes.iter().map(|node| node.cost).sum(),
            nodes_left: nodes.len(),
            dependents,
            ways,
            ready: [BTreeSet::new(), BTreeSet::new()],
            held: HashMap::new(),
            workers: workers.max(1) as u64,
            running: 0,
            nodes,
        };
        for number in 0..graph.nodes.len() {
            if graph.waits_for[number] == 0 {
                graph.enter(number);
            }
        }
        graph
    }

    fn key(&self, number: usize) -> (u64, std::cmp::Reverse<usize>) {
        (self.ways[number], std::cmp::Reverse(number))
    }

    fn enter(&mut self, number: usize) {
        let key = self.key(number);
        self.ready[usize::from(self.nodes[number].builds)].insert(key);
    }

    fn free(&self, number: usize) -> bool {
        self.nodes[number].holds.iter().all(|(table, hold)| match self.held.get(table) {
            None | Some((0, _)) => true,
            Some((_, held)) => *hold == Hold::Shared && *held == Some(Hold::Shared),
        })
    }

    /// The ready piece with the longest way that can begin now.
    fn first(&self, builds: bool) -> Option<usize> {
        let ready = &self.ready[usize::from(builds)];
        ready.iter().rev().map(|(_, number)| number.0).find(|number| self.free(*number))
    }

    /// The next piece for a worker. Data of which the way to the end is longer than what a worker's share of all that is left
    /// come first; else what is built of data that were just loaded, while they are in memory.
    pub(super) fn take(&mut self) -> Next {
        let (loads, builds) = (self.first(false), self.first(true));
        let is_long = |number: usize| self.ways[number].saturating_mul(self.workers) >= self.cost_left;
        let number = match (loads, builds) {
            (Some(loads), Some(builds)) if is_long(loads) && self.ways[loads] >= self.ways[builds] => loads,
            (_, Some(builds)) => builds,
            (Some(loads), None) => loads,
            (None, None) if self.nodes_left == 0 => return Next::Over,
            (None, None) => return Next::Wait,
        };
        let key = self.key(number);
        self.ready[usize::from(self.nodes[number].builds)].remove(&key);
        for (table, hold) in &self.nodes[number].holds {
            let held = self.held.entry(*table).or_default();
            *held = (held.0 + 1, Some(*hold));
        }
        self.running += 1;
        Next::Node(number)
    }

    /// Workers that have nothing to do now.
    pub(super) fn idle(&self) -> u64 {
        let ready = [false, true].into_iter().any(|builds| self.first(builds).is_some());
        if ready { 0 } else { self.workers.saturating_sub(self.running) }
    }

    /// A piece that was taken is done.
    pub(super) fn done(&mut self, number: usize) {
        for (table, _) in &self.nodes[number].holds {
            if let Some(held) = self.held.get_mut(table) {
                held.0 = held.0.saturating_sub(1);
            }
        }
        self.running -= 1;
        self.pass(number);
    }

    fn pass(&mut self, number: usize) {
        self.cost_left -= self.nodes[number].cost;
        self.nodes_left -= 1;
        for next in std::mem::take(&mut self.dependents[number]) {
            self.waits_for[next] -= 1;
            if self.waits_for[next] == 0 {
                self.enter(next);
            }
        }
    }
}

/// The pieces' order, each behind those it waits for; takes out what would close a circle.
fn order(nodes: &mut [Node]) -> Vec<usize> {
    let count = nodes.len();
    for (number, node) in nodes.iter_mut().enumerate() {
        node.after.sort_unstable();
        node.after.dedup();
        node.after.retain(|before| *before < count && *before != number);
    }
    let mut behind = vec![Vec::new(); count];
    let mut waits: Vec<usize> = nodes.iter().map(|node| node.after.len()).collect();
    for (number, node) in nodes.iter().enumerate() {
        node.after.iter().for_each(|before| behind[*before].push(number));
    }
    let mut order: Vec<usize> = (0..count).filter(|number| waits[*number] == 0).collect();
    let (mut at, mut look) = (0, 0);
    let mut placed = vec![false; count];
    loop {
        while at < order.len() {
            let number = order[at];
            (placed[number], at) = (true, at + 1);
            for next in &behind[number] {
                waits[*next] = waits[*next].saturating_sub(1);
                if waits[*next] == 0 && !placed[*next] {
                    order.push(*next);
                }
            }
        }
        // All that are left wait for each other: the first of them waits for those only that have their place.
        let Some(number) = (look..count).find(|number| !placed[*number]) else { return order };
        look = number;
        nodes[number].after.retain(|before| placed[*before]);
        (waits[number], placed[number]) = (0, true);
        order.push(number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn data(cost: u64, table: i32) -> Node {
        Node { cost, weight: cost, after: Vec::new(), holds: vec![(table, Hold::Alone)], builds: false }
    }

    fn build(cost: u64, after: &[usize], table: i32, hold: Hold) -> Node {
        Node { cost, weight: cost, after: after.to_vec(), holds: vec![(table, hold)], builds: true }
    }

    #[test]
    fn the_longest_way_comes_first_and_indexes_as_soon_as_their_table_is_whole() {
        let nodes = vec![
            data(10, 1),
            data(100, 2),
            data(20, 3),
            build(4, &[0], 1, Hold::Shared),
            build(8, &[2], 3, Hold::Alone),
            build(7, &[2], 3, Hold::Shared),
        ];
        let mut graph = Graph::new(nodes, 2);
        assert_eq!(graph.take(), Next::Node(1), "the large one");
        assert_eq!(graph.take(), Next::Node(2));
        graph.done(2);
        assert_eq!(graph.take(), Next::Node(4), "before the table that is left");
        assert_eq!(graph.take(), Next::Node(0), "an index beside a constraint of the same table would only wait");
        graph.done(0);
        assert_eq!(graph.take(), Next::Node(3));
        assert_eq!((graph.take(), graph.idle()), (Next::Wait, 0));
        graph.done(4);
        assert_eq!(graph.idle(), 0, "another index can begin");
        assert_eq!(graph.take(), Next::Node(5));
        for (number, idle) in [(1, 0), (3, 1), (5, 2)] {
            graph.done(number);
            assert_eq!(graph.idle(), idle);
        }
        assert_eq!(graph.take(), Next::Over);
    }

    proptest! {
        #[test]
        fn all_is_done_once_and_nothing_too_early(
            links in prop::collection::vec((prop::collection::vec(0usize..30, 0..4), 0u64..50, 0i32..4, any::<[bool; 2]>()), 1..30),
            workers in 1usize..5,
            seed in any::<u64>(),
        ) {
            let hold = |alone: bool| if alone { Hold::Alone } else { Hold::Shared };
            let nodes: Vec<Node> = links.iter().map(|(after, cost, table, flags)| Node {
                cost: *cost, weight: *cost, after: after.clone(), holds: vec![(*table, hold(flags[0]))], builds: flags[1],
            }).collect();
            let mut graph = Graph::new(nodes, workers);
            let nodes = graph.nodes.clone();
            let (mut running, mut done, mut random) = (Vec::<usize>::new(), std::collections::HashSet::new(), seed);
            loop {
                let next = if running.len() < workers { graph.take() } else { Next::Wait };
                match next {
                    Next::Over => break,
                    Next::Node(number) => {
                        prop_assert!(nodes[number].after.iter().all(|before| done.contains(before)));
                        let (table, how) = nodes[number].holds[0];
                        for other in &running {
                            let (same, other) = nodes[*other].holds[0];
                            prop_assert!(same != table || how == Hold::Shared && other == Hold::Shared);
                        }
                        running.push(number);
                    }
                    Next::Wait => {
                        prop_assert!(!running.is_empty(), "nobody works and all wait");
                        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                        let number = running.swap_remove((random >> 33) as usize % running.len());
                        prop_assert!(done.insert(number));
                        graph.done(number);
                    }
                }
            }
            prop_assert_eq!(done.len(), nodes.len());
        }
    }
}
