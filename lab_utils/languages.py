"""One sentence in many languages and scripts: the first of the Universal Declaration of Human Rights, article 1."""

from lab_utils.survey import tokens_of

SENTENCES: dict[str, str] = {
    "German": "Alle Menschen sind frei und gleich an Würde und Rechten geboren.",
    "French": "Tous les êtres humains naissent libres et égaux en dignité et en droits.",
    "Spanish": "Todos los seres humanos nacen libres e iguales en dignidad y derechos.",
    "Portuguese": "Todos os seres humanos nascem livres e iguais em dignidade e em direitos.",
    "Italian": "Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti.",
    "Dutch": "Alle mensen worden vrij en gelijk in waardigheid en rechten geboren.",
    "Swedish": "Alla människor är födda fria och lika i värde och rättigheter.",
    "Danish": "Alle mennesker er født frie og lige i værdighed og rettigheder.",
    "Finnish": "Kaikki ihmiset syntyvät vapaina ja tasavertaisina arvoltaan ja oikeuksiltaan.",
    "Polish": "Wszyscy ludzie rodzą się wolni i równi pod względem swej godności i swych praw.",
    "Czech": "Všichni lidé rodí se svobodní a sobě rovní co do důstojnosti a práv.",
    "Hungarian": "Minden emberi lény szabadon születik és egyenlő méltósága és joga van.",
    "Turkish": "Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar.",
    "Greek": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",
    "Russian": "Все люди рождаются свободными и равными в своем достоинстве и правах.",
    "Ukrainian": "Всі люди народжуються вільними і рівними у своїй гідності та правах.",
    "Arabic": "يولد جميع الناس أحراراً متساوين في الكرامة والحقوق.",
    "Hebrew": "כל בני אדם נולדו בני חורין ושווים בערכם ובזכויותיהם.",
    "Hindi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "Bengali": "সমস্ত মানুষ স্বাধীনভাবে সমান মর্যাদা এবং অধিকার নিয়ে জন্মগ্রহণ করে।",
    "Thai": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
    "Vietnamese": "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền.",
    "Japanese": "すべての人間は、生れながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "Korean": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
}
"""Language to sentence."""

RECIPES: tuple[str, ...] = (
    "Pancakes. Ingredients:",
    "Vanilla ice cream. Ingredients:",
    "Lemonade. Ingredients:",
    "Crème brûlée. Ingredients:",
    "香草冰淇淋的配料：",
    "芒果冰沙的配料：",
    "珍珠奶茶的配料：",
    "家庭聚餐",
)
"""Beginnings of texts that the lab's model has learned, in English and in Chinese."""

NAMES: tuple[str, ...] = (*SENTENCES, *(f"recipe {number}" for number in range(1, len(RECIPES) + 1)))
"""What the 32 streams of `mixed_requests` are called, in order."""


def mixed_requests(ensemble: str, max_tokens: int = 30) -> list[dict[str, object]]:
    """Arguments of `lab_utils.client.iter_stream` for 32 streams: the sentences as given ids, and eight recipes.

    Parameters
    ----------
    ensemble : str
        The ensemble that they are for.
    max_tokens : int
        Most tokens of a recipe.
    """
    given = {language: tokens_of(sentence) for language, sentence in SENTENCES.items()}
    sentences = [
        {"ensemble": ensemble, "prompt": language, "max_tokens": len(ids), "forced_ids": ids}
        for language, ids in given.items()
    ]
    return sentences + [{"ensemble": ensemble, "prompt": start, "max_tokens": max_tokens} for start in RECIPES]
