"""Write SQuAD's questions and paragraphs as a collection: `python docs/results/squad_retrieval.py FILE FOLDER`.

Every distinct paragraph of the file is a document, every question a query, and its paragraph the one relevant document.
"""

import gzip
import json
import sys
from pathlib import Path

file, folder = Path(sys.argv[1]), Path(sys.argv[2])
(folder / "qrels").mkdir(parents=True, exist_ok=True)
with gzip.open(file, "rt", encoding="utf-8") as source:
    articles = json.load(source)["data"]
documents: dict[str, str] = {}
queries, grades = {}, []
for article in articles:
    for paragraph in article["paragraphs"]:
        document = documents.setdefault(paragraph["context"], f"d{len(documents)}")
        for question in paragraph["qas"]:
            queries[question["id"]] = question["question"]
            grades.append(f"{question['id']}\t{document}\t1")
for name, texts in (("corpus", {number: text for text, number in documents.items()}), ("queries", queries)):
    rows = (json.dumps({"_id": number, "text": text}) for number, text in texts.items())
    (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
(folder / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *dict.fromkeys(grades)]) + "\n")
