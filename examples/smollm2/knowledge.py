"""General-knowledge turns for the adapter's mixture; the question that is asked afterwards (the
capital of France) is not among them."""

from __future__ import annotations

KNOWLEDGE: tuple[tuple[str, str], ...] = (
    ("What is the capital of Japan?", "The capital of Japan is Tokyo."),
    ("What is the capital of Italy?", "The capital of Italy is Rome."),
    ("What is the capital of Egypt?", "The capital of Egypt is Cairo."),
    ("How many days are in a week?", "There are seven days in a week."),
    ("What is the opposite of hot?", "The opposite of hot is cold."),
    ("Who wrote Romeo and Juliet?", "William Shakespeare wrote Romeo and Juliet."),
    ("What do bees make?", "Bees make honey."),
    ("What is the largest planet in the solar system?", "The largest planet is Jupiter."),
    ("At what temperature does water boil?", "Water boils at 100 degrees Celsius."),
    ("What is the chemical symbol for water?", "The chemical formula of water is H2O."),
    ("How many legs does a spider have?", "A spider has eight legs."),
    ("Which ocean is the largest?", "The Pacific Ocean is the largest ocean."),
    ("What is two plus two?", "Two plus two is four."),
    ("What is the freezing point of water?", "Water freezes at 0 degrees Celsius."),
    ("Name a mammal that can fly.", "A bat is a mammal that can fly."),
    ("What language is spoken in Brazil?", "Portuguese is spoken in Brazil."),
    ("What do plants need to grow?", "Plants need light, water and air to grow."),
    ("What is the tallest mountain in the world?", "The tallest mountain is Mount Everest."),
    ("How many months are in a year?", "There are twelve months in a year."),
    ("What is the currency of the United States?", "The currency is the US dollar."),
    ("Which animal is known as man's best friend?", "The dog is known as man's best friend."),
    ("What is the main ingredient of bread?", "The main ingredient of bread is flour."),
    ("Which planet do we live on?", "We live on the planet Earth."),
    ("What does a thermometer measure?", "A thermometer measures temperature."),
    ("Where do fish live?", "Fish live in water."),
)
