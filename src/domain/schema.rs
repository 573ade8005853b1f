//! JSON Schemas of payloads: what they may be, and what is wrong with a payload.
//!
//! Whoever may change an application's event types writes them, so a schema must not be able to do
//! harm: it is bounded in bytes, in depth, and in what its references come to; they stay inside it and
//! never lead back to themselves, so that no payload can make the validator recurse for ever or take
//! exponential time. Its patterns are matched in linear time.

mod patterns;

use std::{borrow::Cow, collections::HashMap, fmt};

use jsonschema::{PatternOptions, Validator};
use serde_json::Value;

/// How many bytes a schema may have.
pub const SCHEMA_BYTES_MAX: usize = 64 * 1024;
/// How deep a schema may nest, as JSON and with its references followed.
pub const SCHEMA_DEPTH_MAX: usize = 64;
/// How many objects a schema may come to with its references written out; sixteen values of an array
/// count as one.
pub const SCHEMA_NODES_MAX: usize = 2_000;
/// How many patterns a schema may come to, so written out.
pub const SCHEMA_PATTERNS_MAX: usize = 100;
/// Maximum cost of all patterns of a new schema, so written out, per byte of a payload: positions of
/// patterns that the engine may have to visit for one byte.
pub const PATTERN_COST_MAX: usize = 400;
/// Maximum size of one compiled pattern, and of the memory for matching it, in bytes.
const PATTERN_BYTES_MAX: usize = 256 * 1024;
/// Maximum work of one check, in objects of the schema times bytes of the payload: some seconds at the
/// very worst. A check cannot be interrupted, so larger payloads are refused.
pub const WORK_MAX: usize = 500_000_000;
/// Objects of a schema that cost as much as one position of a pattern.
const NODES_PER_POSITION: usize = 2;
/// How many faults of a payload are told.
pub const FAULTS_MAX: usize = 5;
/// Up to how much work, in objects of the schema times bytes of the payload, all faults are gathered
/// to tell the first [`FAULTS_MAX`] of them. Beyond it, it is one.
const GATHERED_WORK_MAX: usize = 1_000_000;
/// How many bytes of what is wrong with a value are told.
const MESSAGE_BYTES_MAX: usize = 200;
/// How many bytes of the place of a fault are told: names of members are the caller's.
const POINTER_BYTES_MAX: usize = 500;

/// The drafts that are known, as `$schema` names them, without a final `#`.
const DRAFTS: [&str; 4] = [
    "https://json-schema.org/draft/2020-12/schema",
    "https://json-schema.org/draft/2019-09/schema",
    "http://json-schema.org/draft-07/schema",
    "http://json-schema.org/draft-06/schema",
];

/// A schema, ready to check payloads.
pub struct Schema {
    validator: Validator,
    /// Its bytes, as text.
    bytes: usize,
    measure: Measure,
    /// Whether it holds `anyOf` or `oneOf`, of which even one fault holds those of every branch.
    has_alternatives: bool,
}

/// Why a text is no schema that is taken. The reason completes "`schema` …".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaError {
    /// Where in the schema, as a JSON Pointer.
    pub pointer: String,
    /// What is wrong there.
    pub reason: Cow<'static, str>,
}

/// What is wrong with a payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where in the payload, as a JSON Pointer; cut if it is very long.
    pub pointer: String,
    /// What is wrong there. It shows no values.
    pub message: String,
}

impl Schema {
    /// Reads and compiles a new schema.
    pub fn compile(json: &str) -> Result<Self, SchemaError> {
        let schema = Self::compile_stored(json)?;
        if schema.measure.pattern_cost > PATTERN_COST_MAX {
            let reason = format!(
                "has patterns that cost {} per byte of a payload, and may cost {PATTERN_COST_MAX}: \
                 shorten counted repetitions such as `{{1500}}`, or bound the length by `maxLength`",
                schema.measure.pattern_cost
            );
            return Err(SchemaError { pointer: String::new(), reason: reason.into() });
        }
        Ok(schema)
    }

    /// Compiles a schema that was accepted before: it may cost more than a new one, and takes the
    /// smaller payloads for it.
    pub fn compile_stored(json: &str) -> Result<Self, SchemaError> {
        let fault = |pointer: &str, reason: String| SchemaError {
            pointer: pointer.to_owned(),
            reason: reason.into(),
        };
        if json.len() > SCHEMA_BYTES_MAX {
            return Err(fault("", format!("must be at most {SCHEMA_BYTES_MAX} bytes of JSON")));
        }
        let schema: Value = serde_json::from_str(json)
            .map_err(|_| fault("", format!("must not nest deeper than {SCHEMA_DEPTH_MAX}")))?;
        if !schema.is_object() {
            return Err(fault("", "must be an object".to_owned()));
        }
        let draft = schema.get("$schema").map(|draft| draft.as_str().unwrap_or_default());
        if draft.is_some_and(|draft| !DRAFTS.contains(&draft.trim_end_matches('#'))) {
            let known = DRAFTS.join("`, `");
            return Err(fault("/$schema", format!("must name a known draft: one of `{known}`")));
        }
        let mut survey = Survey::of(&schema);
        let measure = survey.measure(&schema, "", 1)?;
        let has_alternatives = survey.has_alternatives;
        let patterns =
            PatternOptions::regex().size_limit(PATTERN_BYTES_MAX).dfa_size_limit(PATTERN_BYTES_MAX);
        let validator = jsonschema::options()
            .offline()
            .should_validate_formats(true)
            .with_pattern_options(patterns)
            .build(&schema)
            .map_err(|error| {
                let pointer = shortened(error.instance_path().as_str(), POINTER_BYTES_MAX);
                let message = shortened(&error.to_string(), MESSAGE_BYTES_MAX);
                fault(&pointer, format!("is no valid JSON Schema: {message}"))
            })?;
        Ok(Self { validator, bytes: json.len(), measure, has_alternatives })
    }

    /// Checks the text of one JSON value. Tells up to [`FAULTS_MAX`] faults.
    pub fn check(&self, json: &[u8]) -> Result<(), Vec<Fault>> {
        let whole = |message: &str| vec![Fault { pointer: String::new(), message: message.into() }];
        if self.work(json.len()) > WORK_MAX {
            let bytes_max = self.payload_bytes_max();
            let message =
                format!("is too large to be checked by this schema: at most {bytes_max} bytes");
            return Err(whole(&message));
        }
        let payload: Value =
            serde_json::from_slice(json).map_err(|_| whole("nests too deep to be checked"))?;
        if self.validator.is_valid(&payload) {
            return Ok(());
        }
        let faults: Vec<Fault> = if self.work(json.len()) <= GATHERED_WORK_MAX {
            self.validator
                .iter_errors(&payload)
                .take(FAULTS_MAX)
                .map(|error| fault_of(&error))
                .collect()
        } else if self.has_alternatives {
            Vec::new()
        } else {
            self.validator.validate(&payload).err().iter().map(fault_of).collect()
        };
        if faults.is_empty() {
            return Err(whole("does not match; it is too large to say where"));
        }
        Err(faults)
    }

    /// Worst case of the work to check a payload of this size, in objects times bytes.
    pub fn work(&self, payload_bytes: usize) -> usize {
        self.work_per_byte().saturating_mul(payload_bytes)
    }

    /// Size up to which payloads are checked, in bytes.
    pub fn payload_bytes_max(&self) -> usize {
        WORK_MAX / self.work_per_byte()
    }

    fn work_per_byte(&self) -> usize {
        let of_patterns = self.measure.pattern_cost.saturating_mul(NODES_PER_POSITION);
        self.measure.nodes.saturating_add(of_patterns).max(1)
    }

    /// About how many bytes of memory it takes, at most.
    pub fn weight_bytes(&self) -> usize {
        self.bytes * 8 + self.measure.nodes * 1024 + self.measure.patterns * PATTERN_BYTES_MAX
    }
}

impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Schema({} bytes)", self.bytes)
    }
}

fn fault_of(error: &jsonschema::ValidationError<'_>) -> Fault {
    Fault {
        pointer: shortened(error.instance_path().as_str(), POINTER_BYTES_MAX),
        // Without the value: it may be all of the payload.
        message: shortened(&error.masked_with("it").to_string(), MESSAGE_BYTES_MAX),
    }
}

fn shortened(text: &str, bytes_max: usize) -> String {
    let end = text.floor_char_boundary(bytes_max);
    let ellipsis = if end < text.len() { "…" } else { "" };
    format!("{}{ellipsis}", &text[..end])
}

/// What a part of a schema comes to, its references written out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Measure {
    nodes: usize,
    depth: usize,
    patterns: usize,
    /// Cost of the patterns per byte of a payload.
    pattern_cost: usize,
}

/// Measures a schema, every part of it once.
///
/// It looks at every object as though it were a schema, examples and constants too: that counts some
/// too many, and never one too few.
struct Survey<'a> {
    root: &'a Value,
    /// By place in memory; `None` while it is being measured.
    known: HashMap<*const Value, Option<Measure>>,
    /// Costs of patterns that were measured.
    costs: HashMap<&'a str, usize>,
    /// Steps that are left for the patterns that were not.
    steps: usize,
    has_alternatives: bool,
}

impl<'a> Survey<'a> {
    fn of(root: &'a Value) -> Self {
        Self {
            root,
            known: HashMap::new(),
            costs: HashMap::new(),
            steps: patterns::STEPS_MAX,
            has_alternatives: false,
        }
    }

    /// Measures a part, which is `above` levels down.
    fn measure(
        &mut self,
        part: &'a Value,
        pointer: &str,
        above: usize,
    ) -> Result<Measure, SchemaError> {
        let fault = |reason: String| {
            let pointer = shortened(pointer, POINTER_BYTES_MAX);
            Err(SchemaError { pointer, reason: reason.into() })
        };
        let deep = || format!("must not nest deeper than {SCHEMA_DEPTH_MAX}, references followed");
        if above > SCHEMA_DEPTH_MAX {
            return fault(deep());
        }
        match self.known.get(&std::ptr::from_ref(part)) {
            Some(Some(measure)) if above + measure.depth > SCHEMA_DEPTH_MAX => return fault(deep()),
            Some(Some(measure)) => return Ok(*measure),
            Some(None) => return fault("must not lead back to itself by `$ref`".to_owned()),
            None => {}
        }
        self.known.insert(std::ptr::from_ref(part), None);
        let mut sum = Measure::default();
        match part {
            Value::Object(members) => {
                sum.nodes = 1;
                for (name, value) in members {
                    let below = format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1"));
                    sum.add(self.member(name, value, &below, above)?);
                }
            }
            Value::Array(items) => {
                sum.nodes = items.len() / 16;
                for (index, value) in items.iter().enumerate() {
                    sum.add(self.measure(value, &format!("{pointer}/{index}"), above + 1)?);
                }
            }
            _ => {}
        }
        if sum.nodes > SCHEMA_NODES_MAX {
            return fault(format!(
                "must not come to more than {SCHEMA_NODES_MAX} objects, references written out"
            ));
        }
        if sum.patterns > SCHEMA_PATTERNS_MAX {
            return fault(format!(
                "must not come to more than {SCHEMA_PATTERNS_MAX} patterns, references written out"
            ));
        }
        self.known.insert(std::ptr::from_ref(part), Some(sum));
        Ok(sum)
    }

    fn member(
        &mut self,
        name: &str,
        value: &'a Value,
        pointer: &str,
        above: usize,
    ) -> Result<Measure, SchemaError> {
        let fault = |reason: &'static str| {
            let pointer = shortened(pointer, POINTER_BYTES_MAX);
            Err(SchemaError { pointer, reason: reason.into() })
        };
        // What is no string is a member of `properties` that happens to be called so.
        match (name, value) {
            ("$ref", Value::String(reference)) => match self.target(reference) {
                Some(target) => self.measure(target, pointer, above + 1),
                None => fault(
                    "must lead to a part of the same schema, such as `#/$defs/money`, by a plain \
                     JSON Pointer: nothing else is looked up",
                ),
            },
            ("$dynamicRef" | "$recursiveRef", Value::String(_)) => {
                fault("is not supported: use `$ref`")
            }
            ("$id", Value::String(_)) if above > 1 => fault("may stand at the top only"),
            ("pattern", Value::String(pattern)) => {
                let pattern_cost = self.pattern_cost(pattern);
                Ok(Measure { patterns: 1, pattern_cost, ..Measure::default() })
            }
            ("patternProperties", Value::Object(patterns)) => {
                let mut sum = self.measure(value, pointer, above + 1)?;
                sum.patterns += patterns.len();
                for pattern in patterns.keys() {
                    sum.pattern_cost = sum.pattern_cost.saturating_add(self.pattern_cost(pattern));
                }
                Ok(sum)
            }
            _ => {
                self.has_alternatives |= matches!(name, "anyOf" | "oneOf");
                self.measure(value, pointer, above + 1)
            }
        }
    }

    /// The cost of a pattern. Only the first of those that there may be are measured: a schema with more
    /// is refused.
    fn pattern_cost(&mut self, pattern: &'a str) -> usize {
        if let Some(cost) = self.costs.get(pattern) {
            return *cost;
        }
        let is_measured = self.costs.len() < SCHEMA_PATTERNS_MAX;
        let cost = if is_measured { patterns::cost(pattern, &mut self.steps) } else { 0 };
        self.costs.insert(pattern, cost);
        cost
    }

    /// The part that a reference leads to.
    fn target(&self, reference: &str) -> Option<&'a Value> {
        let pointer = reference.strip_prefix('#').filter(|pointer| !pointer.contains('%'))?;
        self.root.pointer(pointer)
    }
}

impl Measure {
    /// Adds a part that is one level below.
    fn add(&mut self, part: Self) {
        self.nodes = self.nodes.saturating_add(part.nodes);
        self.patterns = self.patterns.saturating_add(part.patterns);
        self.pattern_cost = self.pattern_cost.saturating_add(part.pattern_cost);
        self.depth = self.depth.max(part.depth + 1);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn refused(schema: &Value, pointer: &str, reason: &str) {
        let error = Schema::compile(&schema.to_string()).unwrap_err();
        assert!(error.reason.contains(reason), "{error:?}");
        assert_eq!(error.pointer, pointer, "{error:?}");
    }

    #[track_caller]
    fn faults(schema: &Value, payload: &Value) -> Vec<(String, String)> {
        let schema = Schema::compile(&schema.to_string()).unwrap();
        let faults = schema.check(payload.to_string().as_bytes()).err().unwrap_or_default();
        faults.into_iter().map(|fault| (fault.pointer, fault.message)).collect()
    }

    #[test]
    fn faults_are_told_by_place_and_without_values() {
        let schema = json!({
            "type": "object", "required": ["id"], "additionalProperties": false,
            "properties": {
                "id": {"type": "string", "pattern": "^inv_[0-9]+$"},
                "amount": {"$ref": "#/$defs/amount"},
                "at": {"format": "date-time"},
            },
            "$defs": {"amount": {"type": "integer", "minimum": 0}},
        });
        assert_eq!(faults(&schema, &json!({"id": "inv_1", "amount": 7})), []);
        let told = faults(&schema, &json!({"id": "hunter2", "amount": -1, "at": "hunter2"}));
        let places: Vec<_> = told.iter().map(|(pointer, _)| pointer.as_str()).collect();
        assert_eq!(places, ["/amount", "/at", "/id"], "{told:?}");
        assert!(told.iter().all(|(_, message)| !message.contains("hunter2")), "{told:?}");
        let told = faults(&schema, &json!({}));
        assert_eq!(told, [(String::new(), "\"id\" is a required property".to_owned())]);
    }

    #[test]
    fn faults_are_few_and_short() {
        let schema = json!({"items": {"enum": ["x".repeat(10_000)]}});
        let told = faults(&schema, &json!([1, 2, 3, 4, 5, 6, 7]));
        assert_eq!(told.len(), FAULTS_MAX);
        assert!(told.iter().all(|(_, message)| message.len() <= MESSAGE_BYTES_MAX + 3));
        // Where gathering all of them would take too much, it is one; of alternatives not even that.
        let large = Value::from(vec![1; GATHERED_WORK_MAX]);
        assert_eq!(faults(&json!({"items": {"type": "null"}}), &large)[0].0, "/0");
        let alternatives = json!({"items": {"anyOf": [{"type": "null"}]}});
        let told = faults(&alternatives, &large);
        assert_eq!((told.len(), told[0].0.as_str()), (1, ""), "{told:?}");
    }

    #[test]
    fn what_is_no_schema_is_told_with_its_place() {
        refused(&json!([]), "", "must be an object");
        refused(&json!({"properties": {"a": {"type": "strin"}}}), "/properties/a/type", "no valid");
        refused(&json!({"minLength": -1}), "/minLength", "no valid");
        refused(&json!({"$schema": "https://example.com/x"}), "/$schema", "known draft");
        refused(&json!({"description": "x".repeat(SCHEMA_BYTES_MAX)}), "", "at most");
    }

    #[test]
    fn references_stay_inside_and_lead_nowhere_twice() {
        let of = |reference: &str| json!({"properties": {"a": {"$ref": reference}}, "$defs": {}});
        for elsewhere in [
            "https://example.com/schema.json",
            "http://127.0.0.1:1/",
            "file:///etc/passwd",
            "other.json",
            "#name",
            "#/$defs/none",
            "#/%24defs",
        ] {
            refused(&of(elsewhere), "/properties/a/$ref", "the same schema");
        }
        refused(&of("#"), "/properties/a/$ref", "lead back to itself");
        refused(&of("#/properties/a"), "/properties/a/$ref", "lead back to itself");
        let around = json!({"$ref": "#/$defs/a", "$defs": {
            "a": {"items": {"$ref": "#/$defs/b"}}, "b": {"items": {"$ref": "#/$defs/a"}}}});
        assert!(Schema::compile(&around.to_string()).is_err());
        refused(&json!({"items": {"$dynamicRef": "#a"}}), "/items/$dynamicRef", "not supported");
        refused(&json!({"items": {"$id": "https://a.example/"}}), "/items/$id", "at the top");
        // A property may be called so.
        let named = json!({"properties": {"$ref": {"type": "string"}, "$id": {}, "pattern": {}}});
        assert_eq!(faults(&named, &json!({"$ref": 1}))[0].0, "/$ref");
    }

    /// A schema of `levels` parts, each of which names the next one `times` times.
    fn bomb(levels: usize, times: usize) -> Value {
        let part =
            |level| json!({"allOf": vec![json!({"$ref": format!("#/$defs/{level}")}); times]});
        let mut parts: serde_json::Map<_, _> =
            (1..levels).map(|level| ((level - 1).to_string(), part(level))).collect();
        parts.insert((levels - 1).to_string(), json!({"type": "string"}));
        json!({"$ref": "#/$defs/0", "$defs": parts})
    }

    #[test]
    fn no_schema_comes_to_more_than_it_may() {
        assert!(Schema::compile(&bomb(4, 3).to_string()).is_ok());
        let is_refused = |schema: &Value, reason: &str| {
            let error = Schema::compile(&schema.to_string()).unwrap_err();
            assert!(error.reason.contains(reason), "{error:?}");
        };
        is_refused(&bomb(20, 2), "objects");
        is_refused(&bomb(100, 1), "nest deeper");
        let patterns = |count: usize| {
            let of = |index: usize| (format!("p{index}"), json!({"pattern": "^a$"}));
            json!({"properties": (0..count).map(of).collect::<serde_json::Map<_, _>>()})
        };
        assert!(Schema::compile(&patterns(SCHEMA_PATTERNS_MAX).to_string()).is_ok());
        is_refused(&patterns(SCHEMA_PATTERNS_MAX + 1), "patterns");
        is_refused(&json!({"patternProperties": {"^(a{1000}){1000}$": {}}}), "no valid");
        is_refused(&json!({"pattern": "(?=a)b"}), "no valid");
    }

    /// The deepest schema that is taken fits on a small stack.
    #[test]
    fn depth_takes_little_stack() {
        let compiles = |levels| Schema::compile(&bomb(levels, 1).to_string()).is_ok();
        let check = move || {
            let levels = (1..4_000).take_while(|levels| compiles(*levels)).last().unwrap();
            let schema = Schema::compile(&bomb(levels, 1).to_string()).unwrap();
            (levels, schema.check(b"7").is_err())
        };
        let thread = std::thread::Builder::new().stack_size(1024 * 1024).spawn(check).unwrap();
        let (levels, is_refused) = thread.join().unwrap();
        assert!(levels > 10 && is_refused, "{levels}");
    }
}
