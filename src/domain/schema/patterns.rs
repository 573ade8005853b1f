//! Cost of matching the patterns of a schema, per byte of a payload.
//!
//! Patterns are matched in linear time, and the factor is what a tenant can choose. Where the lazily
//! built automaton of a pattern fits in its cache, a byte costs one look-up. Where it does not, the
//! engine falls back to simulating every position of the pattern for every byte.

use jsonschema_regex::{Search, search_form, to_rust_regex};
use regex_automata::{
    Anchored, Input,
    hybrid::dfa::DFA,
    nfa::thompson::{self, NFA, WhichCaptures},
    util::syntax,
};
use regex_syntax::hir::{Hir, HirKind, Look};

use super::PATTERN_BYTES_MAX;

/// Steps of automata that are looked at for all patterns of a schema: about a second at the worst.
pub(super) const STEPS_MAX: usize = 1_000_000;
/// Number of positions up to which a pattern counts as its positions without a closer look.
const POSITIONS_FEW: usize = 4;

/// Cost of a pattern per byte, in positions that the engine may have to visit. A pattern that cannot
/// be read costs nothing here: compiling the schema refuses it. `steps` is what is left of
/// [`STEPS_MAX`]; once it is used up, a pattern costs its positions.
pub(super) fn cost(pattern: &str, steps: &mut usize) -> usize {
    let Ok(translated) = to_rust_regex(pattern) else { return 0 };
    let translated = match search_form(pattern, &translated) {
        // Its characters are counted.
        Some(Search::RepeatedClass(_)) => return 1,
        Some(Search::Collapsed(shorter)) => shorter.into(),
        None => translated,
    };
    let Ok(hir) = syntax::parse(&translated) else { return 0 };
    let positions = positions(&hir);
    if positions > POSITIONS_FEW && automaton_fits(&hir, steps) { 1 } else { positions }
}

/// Number of characters and classes, with repetitions written out.
fn positions(hir: &Hir) -> usize {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => 0,
        HirKind::Literal(literal) => literal.0.len(),
        HirKind::Class(_) => 1,
        HirKind::Repetition(repetition) => {
            let times = repetition.max.unwrap_or(repetition.min.max(1));
            positions(&repetition.sub).saturating_mul(times as usize)
        }
        HirKind::Capture(capture) => positions(&capture.sub),
        HirKind::Concat(parts) | HirKind::Alternation(parts) => {
            parts.iter().map(positions).fold(0, usize::saturating_add)
        }
    }
}

/// Whether the automata that the engine builds for a pattern fit in its cache, wholly built. Patterns
/// without a start anchor are also searched from the end.
fn automaton_fits(hir: &Hir, steps: &mut usize) -> bool {
    let is_anchored = hir.properties().look_set_prefix().contains(Look::Start);
    fits(hir, false, steps) && (is_anchored || fits(hir, true, steps))
}

fn fits(hir: &Hir, is_reverse: bool, steps: &mut usize) -> bool {
    if *steps == 0 {
        return false;
    }
    let config = thompson::Config::new()
        .reverse(is_reverse)
        .which_captures(WhichCaptures::None)
        .nfa_size_limit(Some(PATTERN_BYTES_MAX));
    let nfa = thompson::Compiler::new().configure(config).build_from_hir(hir);
    nfa.is_ok_and(|nfa| is_built_within_the_cache(nfa, is_reverse, steps))
}

fn is_built_within_the_cache(nfa: NFA, is_reverse: bool, steps: &mut usize) -> bool {
    let config = DFA::config()
        .cache_capacity(PATTERN_BYTES_MAX)
        // The first time that the cache is full is the answer.
        .minimum_cache_clear_count(Some(0));
    let Ok(dfa) = DFA::builder().configure(config).build_from_nfa(nfa) else { return false };
    let mut cache = dfa.create_cache();
    let anchored = if is_reverse { Anchored::Yes } else { Anchored::No };
    let input = Input::new("").anchored(anchored);
    let start = if is_reverse {
        dfa.start_state_reverse(&mut cache, &input)
    } else {
        dfa.start_state_forward(&mut cache, &input)
    };
    let Ok(start) = start else { return false };
    let bytes: Vec<u8> = dfa
        .byte_classes()
        .representatives(0..=u8::MAX)
        .filter_map(regex_automata::util::alphabet::Unit::as_u8)
        .collect();
    let mut known = std::collections::HashSet::from([start]);
    let mut open = vec![start];
    while let Some(state) = open.pop() {
        for &byte in &bytes {
            let Some(left) = steps.checked_sub(1) else { return false };
            *steps = left;
            match dfa.next_state(&mut cache, state, byte) {
                Ok(next) if known.insert(next) && !next.is_dead() => open.push(next),
                Ok(next) if next.is_quit() => return false,
                Ok(_) => {}
                Err(_) => return false,
            }
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(pattern: &str) -> usize {
        super::cost(pattern, &mut { STEPS_MAX })
    }

    /// Broken by: many patterns of one schema that are each looked at for long.
    #[test]
    fn steps_of_all_patterns_are_bounded() {
        let (mut steps, pattern) = (STEPS_MAX, "^([a-z0-9] ){20}x$");
        let before = super::cost(pattern, &mut steps);
        let used = STEPS_MAX - steps;
        assert!(used > 100 && before == 1, "{used} {before}");
        let mut steps = used - 1;
        assert!(super::cost(pattern, &mut steps) > 20);
        assert_eq!(steps, 0);
        assert!(super::cost(pattern, &mut steps) > 20, "nothing is left");
    }

    #[test]
    fn cost_of_a_pattern_is_its_worst_case_per_byte() {
        let few = |pattern: &str| assert!(cost(pattern) <= POSITIONS_FEW, "{pattern}");
        for pattern in [
            "^[a-z]{2}_[0-9a-f]{32}$",
            "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
            "^[A-Za-z0-9 _-]{1,1000}$",
            "^[^@]+@[^@]+\\.[a-z]{2,63}$",
            "^https?://[a-z0-9.-]+(:[0-9]+)?(/.*)?$",
            "^(EUR|USD|GBP|CHF|JPY|SEK|NOK|DKK)$",
            "[0-9]{3}-[0-9]{4}",
            "^.{0,200}$",
            "^\\d{4}-\\d{2}-\\d{2}T\\d{2}:\\d{2}:\\d{2}(\\.\\d+)?(Z|[+-]\\d{2}:\\d{2})$",
        ] {
            few(pattern);
        }
        // Every position may have to be visited for every byte.
        assert!(cost("^[ab]*a[ab]{1500}$") > 1_500);
        assert!(cost("[ab]{200}a[ab]{200}$") > 300, "searched from the end");
        assert!(cost("(a|b)*a(a|b){30}c") > 30);
        assert_eq!(cost("(?=a)b"), 0);
        assert_eq!(cost("("), 0);
    }
}
