//! What `a.b` is in a query of pg_dump's: a relation, function, type, operator or collation of schema `a`, or column `b` of
//! something that is called `a` there. Queries stand in the definitions of views, rules, policies, triggers and functions; the server
//! writes them (`src/backend/utils/adt/ruleutils.c`), a relation always with its schema, a column never.

use super::words::Word;

/// What may stand at a place of a clause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Zone {
    /// Outside of a query, or within what a query has in parentheses: expressions.
    Outside,
    /// Expressions of a query.
    Query,
    /// FROM, where an item is to come.
    Item,
    /// FROM, behind an item.
    From,
    /// The condition of a join.
    On,
    /// `AS (name type, …)` behind an item.
    Columns,
}

const QUERIES: [&str; 6] = ["SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "VALUES"];
/// What a relation follows wherever it stands.
const BEFORE_RELATIONS: [&str; 7] = ["INTO", "UPDATE", "JOIN", "ONLY", "TABLE", "VIEW", "TO"];
/// What ends FROM.
const AFTER_FROM: [&str; 15] = [
    "WHERE",
    "GROUP",
    "HAVING",
    "ORDER",
    "WINDOW",
    "LIMIT",
    "OFFSET",
    "FETCH",
    "UNION",
    "INTERSECT",
    "EXCEPT",
    "FOR",
    "SET",
    "RETURNING",
    "WHEN",
];

/// For each word whether the name there is that of a relation's, function's or type's schema, if it is followed by a dot.
pub(super) fn qualify(words: &[Word<'_>]) -> Vec<bool> {
    let mut found = vec![false; words.len()];
    let mut zones = vec![Zone::Outside];
    let (mut begun, mut condition) = (false, false);
    // The last three that are no space.
    let mut before: [Option<Word<'_>>; 3] = [None; 3];
    for (at, word) in words.iter().enumerate() {
        if matches!(word, Word::Space(_)) {
            continue;
        }
        let zone = zones.last().copied().unwrap_or(Zone::Outside);
        let [third, second, last] = before;
        let follows = |words: &[&str]| last.is_some_and(|last| last.keyword(words));
        let is = |word: Option<Word<'_>>, text: &str| word == Some(Word::Other(text));
        let is_name = matches!(word, Word::Name(_));
        if is_name && words.get(at + 1) == Some(&Word::Other(".")) && !is(last, ".") {
            let called = words.get(at + 3) == Some(&Word::Other("("));
            let operator = matches!(words.get(at + 2), Some(Word::Other(_)));
            let cast = is(last, ":") && is(second, ":");
            let on = follows(&["ON"]) && zone != Zone::On;
            let column_type = zone == Zone::Columns && matches!(last, Some(Word::Name(_)));
            let json_type = zone == Zone::Outside && begun && follows(&["RETURNING"]);
            let relation = zone == Zone::Item || on || follows(&BEFORE_RELATIONS);
            let using = follows(&["USING"]) && begun;
            // Before the first query there are no columns with something before them, but in a trigger's condition.
            let early = !begun && !condition;
            let collation = follows(&["COLLATE"]);
            found[at] =
                called || operator || cast || column_type || json_type || relation || using || collation || early;
        }
        condition |= word.keyword(&["WHEN"]);
        let new = match *word {
            Word::Other("(") => {
                let alias = matches!(last, Some(Word::Name(_)))
                    && (is(second, ")") || second.is_some_and(|w| w.keyword(&["AS"])));
                zones.push(match zone {
                    Zone::Item => Zone::Item,
                    Zone::From if follows(&["AS"]) || alias && !is(third, ".") => Zone::Columns,
                    _ => Zone::Outside,
                });
                None
            }
            Word::Other(")") => {
                if zones.len() > 1 {
                    zones.pop();
                }
                // What stood in parentheses was an item, if one was to come.
                (zones.last() == Some(&Zone::Item)).then_some(Zone::From)
            }
            Word::Other(",") if matches!(zone, Zone::From | Zone::On) => Some(Zone::Item),
            Word::Other(";") => Some(Zone::Outside),
            word if word.keyword(&QUERIES) => {
                begun = true;
                Some(Zone::Query)
            }
            word if word.keyword(&["FROM"]) && zone == Zone::Query && !follows(&["DISTINCT"]) => Some(Zone::Item),
            word if word.keyword(&["JOIN"]) && matches!(zone, Zone::From | Zone::On) => Some(Zone::Item),
            word if word.keyword(&["ON"]) && zone == Zone::From => Some(Zone::On),
            word if word.keyword(&AFTER_FROM) && matches!(zone, Zone::From | Zone::On) => Some(Zone::Query),
            word if word.keyword(&["ONLY", "LATERAL", "ROWS"]) => None,
            Word::Name(_) | Word::Literal(_) if zone == Zone::Item => Some(Zone::From),
            _ => None,
        };
        if let (Some(new), Some(zone)) = (new, zones.last_mut()) {
            *zone = new;
        }
        before = [second, last, Some(*word)];
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::words::words;
    use super::*;

    /// The statement with what is a schema's name in brackets.
    fn marked(sql: &str) -> String {
        let words = words(sql);
        let found = qualify(&words);
        let mark =
            |(word, is): (&Word<'_>, &bool)| if *is { format!("[{}]", word.text()) } else { word.text().to_owned() };
        words.iter().zip(&found).map(mark).collect()
    }

    #[test]
    fn relations_functions_and_types_are_told_from_columns() {
        for expect in [
            "CREATE VIEW [a].v AS\n SELECT a.t,\n    a.u\n   FROM [a].t a;",
            "CREATE VIEW [a].v AS SELECT a.t FROM ([a].t a JOIN [a].u ON ((a.t = u.a)));",
            "SELECT a.x FROM [a].t a, [a].u, LATERAL [a].f(a.t) f WHERE a.t = [a].g(a.u) GROUP BY a.t",
            "SELECT a.x FROM (SELECT b.x FROM [a].b) a, ([a].c CROSS JOIN [a].d) WHERE (EXISTS ( SELECT 1 FROM [a].t))",
            "SELECT a.t::[a].mood, EXTRACT(year FROM a.t), (a.t IS DISTINCT FROM a.u) FROM ONLY [a].t a",
            "SELECT a.t OPERATOR([a].+) a.u, a.t COLLATE [a].c FROM [a].t a UNION SELECT a.t FROM [a].u a",
            "SELECT a.x FROM [a].f(1) AS a(x [a].mood, y integer)",
            "SELECT a.x FROM ROWS FROM([a].f(1), g(2)) a(x)",
            "CREATE RULE r AS ON INSERT TO [a].v DO INSTEAD INSERT INTO [a].t (x) VALUES (a.t) RETURNING a.t",
            "CREATE RULE r AS ON UPDATE TO [a].v DO INSTEAD UPDATE [a].t a SET x = new.y WHERE (a.t = old.t)",
            "CREATE RULE r AS ON DELETE TO [a].v WHERE (a.t > 1) DO INSTEAD DELETE FROM [a].t a WHERE (a.t = 1)",
            "CREATE POLICY p ON [a].t USING ((EXISTS ( SELECT 1 FROM [a].u a WHERE (a.t = t.x))))",
            "CREATE FUNCTION [a].f(a [a].mood, b [a].mood) RETURNS [a].mood LANGUAGE sql BEGIN ATOMIC SELECT a.t FROM [a].t a; END",
            "CREATE TRIGGER x BEFORE UPDATE OF a ON [a].t FOR EACH ROW WHEN ((a.t = 1)) EXECUTE FUNCTION [a].f()",
            "MERGE INTO [a].t a USING [a].u ON (a.t = u.t) WHEN MATCHED THEN UPDATE SET x = a.t",
            "SELECT a.t FROM ([a].t a JOIN [a].u USING (t)) ORDER BY a.t FOR UPDATE OF a",
            "WITH a AS (SELECT t.x FROM [a].t) SELECT a.t FROM a",
        ] {
            assert_eq!(marked(&expect.replace(['[', ']'], "")), expect);
        }
    }
}
