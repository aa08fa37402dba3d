//! Near misses: which of the known words a misspelt one was meant to be. In: words. Out: one of them, or none. Pure.

/// No Kubernetes name is longer.
const LONGEST: usize = 253;

/// The word of `known` that `word` is probably a misspelling of: the nearest, within two edits (one in a short word).
#[must_use]
pub fn near_miss<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    if word.len() > LONGEST {
        return None;
    }
    let distances = known.iter().map(|meant| (edits(&word.to_lowercase(), &meant.to_lowercase()), *meant));
    let near = distances.filter(|(distance, meant)| *distance <= if meant.len() >= 6 { 2 } else { 1 });
    near.min_by_key(|(distance, _)| *distance).map(|(_, meant)| meant)
}

/// How far apart two words are; letters that changed places are one edit.
fn edits(left: &str, right: &str) -> usize {
    let sorted = |word: &str| {
        let mut letters: Vec<char> = word.chars().collect();
        letters.sort_unstable();
        letters
    };
    if left != right && sorted(left) == sorted(right) { 1 } else { distance(left, right) }
}

/// Levenshtein distance.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, from) in left.chars().enumerate() {
        let mut next = vec![i + 1];
        for ((to, pair), cost_left) in right.iter().zip(row.windows(2)).zip(1..) {
            let (diagonal, above) = (pair.first().copied().unwrap_or(0), pair.last().copied().unwrap_or(0));
            let left_of = next.get(cost_left - 1).copied().unwrap_or(0);
            next.push((above + 1).min(left_of + 1).min(diagonal + usize::from(from != *to)));
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}
